"""Best of N: exact expectation, early rejection, outcomes."""

from icrm_lib.best_of_n.early_rejection import Schedule, early_rejection
from icrm_lib.best_of_n.expectation import best_of_n_kl, expected_best_of_n, pick_weights
from icrm_lib.best_of_n.live_rejection import sample_with_early_rejection
from icrm_lib.best_of_n.outcomes import load_outcomes, outcome_accuracy, win_tie_lose

__all__ = [
    "Schedule",
    "best_of_n_kl",
    "early_rejection",
    "expected_best_of_n",
    "load_outcomes",
    "outcome_accuracy",
    "pick_weights",
    "sample_with_early_rejection",
    "win_tie_lose",
]
