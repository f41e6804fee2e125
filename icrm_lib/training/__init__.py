"""Training a reward model: configuration, trainer, collation, and one call that does it all."""

from icrm_lib.training.fit import train_reward_model
from icrm_lib.training.trainer import ConsistencyScale, ICRMConfig, ICRMTrainer, reads_generator, statistic_of

__all__ = [
    "ConsistencyScale",
    "ICRMConfig",
    "ICRMTrainer",
    "reads_generator",
    "statistic_of",
    "train_reward_model",
]
