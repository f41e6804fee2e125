"""The losses. Every reward is a raw one (a logit), never a probability; all arithmetic is in float32 or wider."""

from icrm_lib.objectives.consistency import (
    CENTERINGS,
    WEIGHTINGS,
    consistency_terms,
    pointwise_consistency_terms,
)
from icrm_lib.objectives.forms import FORMS, Siblings
from icrm_lib.objectives.responses import (
    GRM_FORMS,
    bradley_terry_loss,
    grm_text_loss,
    outcome_loss,
    positive_reward_penalty,
    process_loss,
)

__all__ = [
    "CENTERINGS",
    "FORMS",
    "GRM_FORMS",
    "WEIGHTINGS",
    "Siblings",
    "bradley_terry_loss",
    "consistency_terms",
    "grm_text_loss",
    "outcome_loss",
    "pointwise_consistency_terms",
    "positive_reward_penalty",
    "process_loss",
]
