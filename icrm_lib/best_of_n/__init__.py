"""Best of N: exact expectation, early rejection, outcomes."""

from icrm_lib.best_of_n.early_rejection import Schedule, early_rejection, sample_with_early_rejection
from icrm_lib.best_of_n.picks import expected_best_of_n, win_tie_lose

__all__ = ["Schedule", "early_rejection", "expected_best_of_n", "sample_with_early_rejection", "win_tie_lose"]
