"""Estimates with intervals, paired comparisons, and the correction for their number: the only bootstraps of the kit."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, t

RESAMPLES = 4_000  # of seeds and prompts
ALPHA = 0.05
Side = tuple[np.ndarray, np.ndarray]  # numerators and denominators, both of shape (seeds, prompts)


class Estimate(NamedTuple):
    """A number with its 95 % interval.

    Attributes:
        value: the estimate on all the data.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def resampled(statistic: Callable, *rows: np.ndarray, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Estimate with a percentile-bootstrap interval: rows are drawn with replacement, those of one number together.

    Args:
        statistic: as `numpy.mean`: takes the arrays, and `axis` for the axis that is summed up.
        rows: what is resampled, e.g. one number a prompt. Shape of each: (N,).
        resamples: number of resamples.
        seed: of the resampling.

    Returns:
        the estimate; its interval is the value itself when N is 1.
    """
    value = float(statistic(*rows, axis=0))
    if len(rows[0]) < 2:
        return Estimate(value, value, value)
    result = bootstrap(
        rows,
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2**21 // len(rows[0])),  # memory; the numbers are the same without
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(value, *map(float, result.confidence_interval))


def means_over_prompts(values: np.ndarray) -> list[Estimate]:
    """Mean over prompts of each column, with a 95 % interval that resamples prompts. Shape: (prompts, measures).

    Rounded to 1e-12: shares of few prompts lie on the edges of what a table prints, and the order of a sum must not
    show there.
    """
    return [Estimate(*np.round(resampled(np.mean, column), 12).tolist()) for column in values.T]


class Difference(NamedTuple):
    """A paired difference of two variants in one measure.

    Attributes:
        first, second: means over the seeds that both have.
        difference: first - second with its 95 % interval.
        p: two-sided p-value; below 0.05 where the interval leaves out 0.
        seeds: how many pairs of seeds.
    """

    first: float
    second: float
    difference: Estimate
    p: float
    seeds: int


def crossed_mean(side: Side, *, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """Mean over seeds and prompts with a 95 % interval over both; the point itself for a single seed.

    Args:
        side: sum of numerators over sum of denominators is the mean; one prompt where a measure is undivided.
        bounds: of the interval.
    """
    (value,) = map(float, _means([side]))
    if len(side[0]) < 2:
        return Estimate(value, value, value)
    half = t.ppf(1 - ALPHA / 2, len(side[0]) - 1) * _standard_error([side])
    return Estimate(value, max(bounds[0], float(value - half)), min(bounds[1], float(value + half)))


def paired_difference(first: Side, second: Side) -> Difference:
    """Compare two variants on the same seeds and prompts.

    The standard error comes from paired bootstraps, over seeds, over prompts, and over both;
    interval and p-value from Student's t with seeds - 1 degrees of freedom. For a measure that is not divided by prompt
    this is the paired t-test over seeds.

    Args:
        first, second: of at least two seeds.
    """
    sides, seeds = [first, second], len(first[0])
    means = _means(sides)
    value, error = float(means[0] - means[1]), _standard_error(sides)
    if error < 1e-12:  # the same in every cell
        return Difference(*map(float, means), Estimate(value, value, value), float(abs(value) < 1e-12), seeds)
    half = t.ppf(1 - ALPHA / 2, seeds - 1) * error
    p = 2 * t.sf(abs(value) / error, seeds - 1)
    return Difference(*map(float, means), Estimate(value, float(value - half), float(value + half)), float(p), seeds)


def _means(sides: list[Side]) -> list[float]:
    return [top.sum() / bottom.sum() for top, bottom in sides]


def _standard_error(sides: list[Side]) -> float:
    """Standard error of the mean (one side) or of the difference (two), seeds and prompts being crossed.

    A bootstrap of seeds has the variance V_seed + V_noise, one of prompts V_prompt + V_noise, one of both about
    V_seed + V_prompt + 3 V_noise (Owen, Annals of Applied Statistics 2007). Wanted is V_seed + V_prompt + V_noise: the
    first two together, less what the third has beyond them.
    """
    rng = np.random.default_rng(0)
    n_seeds, n_prompts = sides[0][0].shape
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), RESAMPLES)
    prompts = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), RESAMPLES)

    def variance(by_seed: np.ndarray, by_prompt: np.ndarray) -> float:
        drawn = [
            ((by_seed @ top) * by_prompt).sum(1) / ((by_seed @ bottom) * by_prompt).sum(1) for top, bottom in sides
        ]
        return float(np.var(drawn[0] - drawn[1] if len(drawn) == 2 else drawn[0]))

    of_seeds = variance(seeds, np.ones((1, n_prompts)))
    if n_prompts == 1:
        return float(np.sqrt(of_seeds * n_seeds / (n_seeds - 1)))
    of_prompts = variance(np.ones((1, n_seeds)), prompts)
    noise = max(0.0, variance(seeds, prompts) - of_seeds - of_prompts)
    of_seeds, of_prompts = of_seeds * n_seeds / (n_seeds - 1), of_prompts * n_prompts / (n_prompts - 1)
    return float(np.sqrt(max(of_seeds, of_seeds + of_prompts - noise)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction (Scandinavian Journal of Statistics, 1979).

    Args:
        p_values: of one family of tests. Length N.

    Returns:
        adjusted p-values, at most 1. Shape: (N,).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted
