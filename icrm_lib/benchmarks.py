"""How good a reward model is: pair accuracy with an honest interval, and token rewards against a known truth."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, spearmanr


class Estimate(NamedTuple):
    """A number with its 95 % interval.

    Attributes:
        value: the estimate on all the data.
        low, high: percentile bootstrap interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def pair_accuracy(
    chosen: Sequence[float],
    rejected: Sequence[float],
    prompts: Sequence,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Share of pairs whose chosen response scores strictly higher, with a prompt-clustered bootstrap interval.

    Pairs of one prompt are not independent, so whole prompts are resampled.

    Args:
        chosen: scores of the chosen responses. Length N.
        rejected: scores of the rejected responses. Length N.
        prompts: what identifies each pair's prompt (hashable). Length N.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        accuracy in [0, 1]; the interval is the point itself when there is a single prompt.

    Raises:
        ValueError: lengths differ, no pair, or a score that is not finite.
    """
    chosen, rejected = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    if not len(chosen) == len(rejected) == len(prompts) or not len(chosen):
        raise ValueError(
            f"need as many chosen as rejected scores as prompts, at least one: got {len(chosen)}, {len(rejected)}, "
            f"{len(prompts)}"
        )
    if not (np.isfinite(chosen).all() and np.isfinite(rejected).all()):
        row = int(np.flatnonzero(~np.isfinite(chosen) | ~np.isfinite(rejected))[0])
        raise ValueError(f"pair {row} has a score that is not finite: {chosen[row]} against {rejected[row]}")
    _, cluster = np.unique([str(prompt) for prompt in prompts], return_inverse=True)
    right = np.bincount(cluster, weights=chosen > rejected)
    count = np.bincount(cluster)
    value = right.sum() / count.sum()
    if len(count) < 2:
        return Estimate(value, value, value)
    result = bootstrap(
        (right, count),
        lambda hits, sizes, axis: hits.sum(axis) / sizes.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(float(value), *map(float, result.confidence_interval))


def token_agreement(rewards: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> dict[str, float]:
    """Rank correlation of token rewards with a known truth per token.

    Args:
        rewards: per response, the reward at each token. Each of shape (T_i,).
        truth: per response, what the reward should rank, e.g. `Language.prefix_values`. Each of shape (T_i,).

    Returns:
        `overall`: Spearman correlation over the tokens of all responses; `within`: mean of the responses' own
        correlations (responses whose truth or reward is constant are left out; nan if none is left). Both in [-1, 1].

    Raises:
        ValueError: a response has another number of rewards than of truths.
    """
    for row, (a, b) in enumerate(zip(rewards, truth, strict=True)):
        if len(a) != len(b):
            raise ValueError(f"response {row} has {len(a)} token rewards but {len(b)} true values")
    within = [spearmanr(a, b).statistic for a, b in zip(rewards, truth, strict=True) if np.ptp(a) > 0 and np.ptp(b) > 0]
    overall = spearmanr(np.concatenate(rewards), np.concatenate(truth)).statistic
    return {"overall": float(overall), "within": float(np.mean(within)) if within else float("nan")}
