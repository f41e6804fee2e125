"""A small language whose probabilities, scores and values are known exactly."""

from icrm_lib.testbed.critic import Critic
from icrm_lib.testbed.language import Language
from icrm_lib.testbed.truth import TokenTruth, known_truth

__all__ = ["Critic", "Language", "TokenTruth", "known_truth"]
