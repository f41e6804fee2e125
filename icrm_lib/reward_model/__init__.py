"""A reward model: scores of conversations, rewards of tokens, streams."""

from icrm_lib.reward_model.foreign import load_value_head
from icrm_lib.reward_model.model import RewardModel
from icrm_lib.reward_model.tokens import RewardStream, TokenReward, merge_words

__all__ = ["RewardModel", "RewardStream", "TokenReward", "load_value_head", "merge_words"]
