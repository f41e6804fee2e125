"""What a run will take, before anything starts: parameters, tokens, FLOPs, memory, hours, files."""

from icrm_lib.plan.stages import make_plan
from icrm_lib.plan.text import describe

__all__ = ["describe", "make_plan"]
