"""Policies trained on what a reward model says: DPO and GRPO."""

from icrm_lib.policy.dpo import train_dpo
from icrm_lib.policy.grpo import train_grpo
from icrm_lib.policy.implicit import implicit_rewards
from icrm_lib.policy.pairs import pairs_from_samples

__all__ = ["implicit_rewards", "pairs_from_samples", "train_dpo", "train_grpo"]
