"""Policies trained on what a reward model says: DPO and GRPO, for whole responses and for tokens."""

from icrm_lib.policy.credit import Credit, Drawn, direct, outcome, to_go
from icrm_lib.policy.credit_trainer import CreditTrainer
from icrm_lib.policy.dpo import implicit_rewards, pairs_from_samples, train_dpo
from icrm_lib.policy.grpo import train_grpo
from icrm_lib.policy.token_dpo import PairTokens, TokenDPOTrainer, weighted_loss

__all__ = [
    "Credit",
    "CreditTrainer",
    "Drawn",
    "PairTokens",
    "TokenDPOTrainer",
    "direct",
    "implicit_rewards",
    "outcome",
    "pairs_from_samples",
    "to_go",
    "train_dpo",
    "train_grpo",
    "weighted_loss",
]
