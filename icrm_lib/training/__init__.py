"""Training a reward model: configuration, loss, trainer, and one call that does it all."""

from icrm_lib.training.config import ICRMConfig, reads_generator, statistic_of
from icrm_lib.training.fit import train_reward_model
from icrm_lib.training.loss import Batch, icrm_loss
from icrm_lib.training.scale import ConsistencyScale
from icrm_lib.training.trainer import ICRMTrainer

__all__ = [
    "Batch",
    "ConsistencyScale",
    "ICRMConfig",
    "ICRMTrainer",
    "icrm_loss",
    "reads_generator",
    "statistic_of",
    "train_reward_model",
]
