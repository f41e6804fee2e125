"""Measures of rewards and picks; none needs a model."""

from icrm_lib.measures.agreement import agreement_by_response, partial_agreement, token_agreement, without_controls
from icrm_lib.measures.calibration import Calibration, preference_calibration, token_calibration
from icrm_lib.measures.change import change_at_quality, localisation, smoothness
from icrm_lib.measures.pairs import accuracy_by, length_controlled_accuracy, pair_accuracy
from icrm_lib.measures.statistics import Difference, Estimate, holm
from icrm_lib.measures.tokens import TokenScorer

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
