"""Best of N: exact expectation, early rejection, outcomes."""

from icrm_lib.best_of_n.outcomes import (
    best_of_n_kl,
    expected_best_of_n,
    load_outcomes,
    outcome_accuracy,
    pick_weights,
    win_tie_lose,
)
from icrm_lib.best_of_n.rejection import Schedule, early_rejection, sample_with_early_rejection

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
