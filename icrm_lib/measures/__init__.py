"""Measures of rewards and picks; none needs a model."""

from icrm_lib.measures.pairs import (
    Calibration,
    accuracy_by,
    length_controlled_accuracy,
    pair_accuracy,
    preference_calibration,
)
from icrm_lib.measures.statistics import Estimate
from icrm_lib.measures.tokens import (
    agreement_by_response,
    calibration,
    change_at_quality,
    localisation,
    partial_agreement,
    smoothness,
    token_agreement,
    without_controls,
)

__all__ = [
    "Calibration",
    "Estimate",
    "accuracy_by",
    "agreement_by_response",
    "calibration",
    "change_at_quality",
    "length_controlled_accuracy",
    "localisation",
    "pair_accuracy",
    "partial_agreement",
    "preference_calibration",
    "smoothness",
    "token_agreement",
    "without_controls",
]
