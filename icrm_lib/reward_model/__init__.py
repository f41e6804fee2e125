"""A reward model: scores of conversations, rewards of tokens, streams."""

from icrm_lib.reward_model.model import RewardModel, RewardStream, TokenReward, merge_words
from icrm_lib.reward_model.value_head import load_value_head

__all__ = ["RewardModel", "RewardStream", "TokenReward", "load_value_head", "merge_words"]
