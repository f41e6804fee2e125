"""Policies trained on what a reward model says: DPO and GRPO."""

from icrm_lib.policy.dpo import implicit_rewards, pairs_from_samples, train_dpo
from icrm_lib.policy.grpo import train_grpo

__all__ = ["implicit_rewards", "pairs_from_samples", "train_dpo", "train_grpo"]
