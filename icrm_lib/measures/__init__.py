"""Measures of rewards and picks; none needs a model."""

from icrm_lib.measures.changes import change_at_quality, change_detection, localisation, smoothness
from icrm_lib.measures.pairs import (
    Calibration,
    accuracy_by,
    length_controlled_accuracy,
    pair_accuracy,
    preference_calibration,
)
from icrm_lib.measures.spans import detection_by_response, detection_estimates, span_controls, span_detection
from icrm_lib.measures.statistics import Difference, Estimate, holm
from icrm_lib.measures.tokens import (
    TokenScorer,
    agreement_by_response,
    partial_agreement,
    token_agreement,
    token_calibration,
    without_controls,
)
from icrm_lib.measures.yardsticks import outcome_yardsticks, pair_yardsticks

__all__ = [
    "Calibration",
    "Difference",
    "Estimate",
    "TokenScorer",
    "accuracy_by",
    "agreement_by_response",
    "change_at_quality",
    "detection_by_response",
    "detection_estimates",
    "change_detection",
    "holm",
    "length_controlled_accuracy",
    "localisation",
    "outcome_yardsticks",
    "pair_accuracy",
    "pair_yardsticks",
    "partial_agreement",
    "preference_calibration",
    "smoothness",
    "span_controls",
    "span_detection",
    "token_agreement",
    "token_calibration",
    "without_controls",
]
