"""What a run will take, before anything starts: parameters, tokens, FLOPs, memory, hours, files."""

from icrm_lib.plan.text import describe
from icrm_lib.plan.whole import make_plan

__all__ = ["describe", "make_plan"]
