"""Training a reward model: configuration, trainer, collation, methods."""

from icrm_lib.training.methods import METHODS, method_settings, train_reward_model
from icrm_lib.training.trainer import ConsistencyScale, ICRMConfig, ICRMTrainer, reads_generator, statistic_of

__all__ = [
    "ConsistencyScale",
    "ICRMConfig",
    "ICRMTrainer",
    "METHODS",
    "method_settings",
    "reads_generator",
    "statistic_of",
    "train_reward_model",
]
