"""What the pick of the best of n is worth, exactly over all subsets of the candidates."""

from collections.abc import Sequence

import numpy as np
from scipy.special import gammaln


def pick_weights(scores: Sequence[float], n: int) -> np.ndarray:
    """Probability of each of N candidates to be the pick among n drawn without replacement, ties broken evenly.

    With the scores in order and c_g the number of candidates at or below the tie group g, the best of a random
    n-subset lies in g with probability [C(c_g, n) - C(c_{g-1}, n)] / C(N, n), shared evenly inside the group.

    Args:
        scores: finite. Shape: (N,).
        n: 1..N.

    Returns:
        probabilities with sum 1. Shape: (N,).

    Raises:
        ValueError: n out of range, or a score that is not finite.
    """
    scores = np.asarray(scores, dtype=float)
    if not 1 <= n <= len(scores):
        raise ValueError(f"n {n}: must be 1..{len(scores)}, the number of candidates")
    if not np.isfinite(scores).all():
        raise ValueError(f"candidate {int(np.flatnonzero(~np.isfinite(scores))[0])} has a score that is not finite")
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.concatenate([[0], np.cumsum(size)])
    share = np.zeros(len(below))
    possible = below >= n
    c, total = below[possible].astype(float), float(len(scores))
    log_ratio = (gammaln(c + 1) - gammaln(c - n + 1)) - (gammaln(total + 1) - gammaln(total - n + 1))
    share[possible] = np.exp(log_ratio)  # C(c, n) / C(N, n)
    share[-1] = 1.0
    return (np.diff(share) / size)[group]


def expected_best_of_n(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of the highest-scoring of n candidates, exact over all size-n subsets of N, in O(N log N).

    Args:
        scores: what the pick is made by. Shape: (N,).
        values: what the pick is worth, e.g. its gold score. Shape: (N,).
        n: 1..N; n = 1 gives the mean of `values`.

    Raises:
        ValueError: lengths differ, n out of range, or a score that is not finite.
    """
    if len(scores) != len(values):
        raise ValueError(f"{len(scores)} scores but {len(values)} values; each candidate needs both")
    return float(pick_weights(scores, n) @ np.asarray(values, dtype=float))


def best_of_n_kl(n: np.ndarray | float) -> np.ndarray | float:
    """Upper bound on the KL divergence of best-of-n from the policy, log n - (n - 1) / n nats (arXiv 2204.05862)."""
    return np.log(n) - (np.asarray(n) - 1) / n
