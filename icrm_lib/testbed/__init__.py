"""A small language whose probabilities, scores and values are known exactly."""

from icrm_lib.testbed.language import Language

__all__ = ["Language"]
