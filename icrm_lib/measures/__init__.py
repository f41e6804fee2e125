"""Measures of rewards and picks; none needs a model."""

from icrm_lib.measures.pairs import (
    Calibration,
    accuracy_by,
    length_controlled_accuracy,
    pair_accuracy,
    preference_calibration,
)
from icrm_lib.measures.statistics import Difference, Estimate, holm
from icrm_lib.measures.tokens import (
    TokenScorer,
    agreement_by_response,
    change_at_quality,
    localisation,
    partial_agreement,
    smoothness,
    token_agreement,
    token_calibration,
    without_controls,
)

__all__ = [
    "Calibration",
    "Difference",
    "Estimate",
    "TokenScorer",
    "accuracy_by",
    "agreement_by_response",
    "change_at_quality",
    "holm",
    "length_controlled_accuracy",
    "localisation",
    "pair_accuracy",
    "partial_agreement",
    "preference_calibration",
    "smoothness",
    "token_agreement",
    "token_calibration",
    "without_controls",
]
