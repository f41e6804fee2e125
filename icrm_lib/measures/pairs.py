"""Pairs: how often a model is right, with an honest interval, by group and for even lengths; how far it knows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit

from icrm_lib.measures.statistics import Estimate, resampled


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
    chosen, rejected = _both_sides(chosen, rejected, prompts)
    everything = np.ones(len(chosen), dtype=bool)
    return _accuracy(chosen > rejected, [everything], prompts, resamples, seed)


def accuracy_by(
    chosen: Sequence[float],
    rejected: Sequence[float],
    prompts: Sequence,
    groups: Sequence,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Pair accuracy of each group of pairs (a source, a domain, a prompt's length class), and of all.

    Args:
        chosen, rejected, prompts, resamples, seed: as in `pair_accuracy`.
        groups: the group of each pair; compared as text. Length N.

    Returns:
        a row a group, in the order of their first pair, then `all`; index `group`, columns `pairs` (their number),
        `accuracy`, `low`, `high` (95 %, prompt-clustered bootstrap).

    Raises:
        ValueError: as `pair_accuracy`, or a group with the name "all".
    """
    chosen, rejected = _both_sides(chosen, rejected, prompts, groups)
    names = np.array([str(group) for group in groups])
    if "all" in names:
        raise ValueError(f"pair {list(names).index('all')} is of group 'all', the name of the last row; rename it")
    rows = {name: [names == name] for name in dict.fromkeys(names.tolist())}
    return _table(chosen > rejected, rows | {"all": [names != "all"]}, prompts, resamples, seed)


def length_controlled_accuracy(
    chosen: Sequence[float],
    rejected: Sequence[float],
    chosen_lengths: Sequence[float],
    rejected_lengths: Sequence[float],
    prompts: Sequence,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Pair accuracy where the chosen response is the longer one, where it is the shorter one, and both weighed alike.

    Where the longer response is mostly the chosen one, a model that looks at length alone has a good accuracy. The row
    `balanced`, the mean of the accuracies on `chosen longer` and on `chosen shorter`, gives it 0.5.

    Args:
        chosen, rejected, prompts, resamples, seed: as in `pair_accuracy`.
        chosen_lengths, rejected_lengths: of the responses, in any one unit (tokens, words), at least 0. Length N each.

    Returns:
        rows `chosen longer`, `chosen shorter`, `equal length`, `balanced`, `all` and `pick the longer`, the accuracy of
        length itself (equal lengths are no win); columns as in `accuracy_by`. A row without pairs, and `balanced` when
        a side has none, is NaN.

    Raises:
        ValueError: as `pair_accuracy`, or a length that is negative or not finite.
    """
    chosen, rejected = _both_sides(chosen, rejected, prompts, chosen_lengths, rejected_lengths)
    lengths = np.array([chosen_lengths, rejected_lengths], dtype=float)
    for row in np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0)).all(axis=0)):
        raise ValueError(f"pair {row} has lengths {lengths[0, row]} and {lengths[1, row]}; give finite ones from 0 on")
    longer, shorter = lengths[0] > lengths[1], lengths[0] < lengths[1]
    everything = np.ones(len(longer), dtype=bool)
    rows = {"chosen longer": [longer], "chosen shorter": [shorter], "equal length": [~longer & ~shorter]}
    rows |= {"balanced": [longer, shorter], "all": [everything]}
    picked = _table(longer, {"pick the longer": [everything]}, prompts, resamples, seed)
    return pd.concat([_table(chosen > rejected, rows, prompts, resamples, seed), picked])


class Calibration(NamedTuple):
    """How far score differences can be read as probabilities, p = sigmoid(chosen - rejected); see
    `preference_calibration`.

    Attributes:
        table: a row for each bin of confidence that has pairs; index `from` (its lower edge), columns `confidence`
            (mean), `accuracy`, `pairs`.
        error: expected calibration error, in [0, 1]: mean over pairs of |accuracy - confidence| of the bin.
        brier: mean (1 - p)^2; 0.25 for a model that says nothing.
        log_loss: mean -log p, in nats; log 2 for a model that says nothing.
        temperature: the T with the lowest log-loss of sigmoid(difference / T); above 1 means too sure. 0 when no pair
            is wrong, infinity when the mean difference is not above 0.
        tempered_log_loss: log-loss at that T, on the same pairs.
    """

    table: pd.DataFrame
    error: float
    brier: float
    log_loss: float
    temperature: float
    tempered_log_loss: float


def preference_calibration(chosen: Sequence[float], rejected: Sequence[float], *, bins: int = 10) -> Calibration:
    """Compare the probability that a model gives its own choice with how often that choice is right (Bradley-Terry).

    The confidence of a pair with difference d is sigmoid(|d|), in [0.5, 1]; it is right when d > 0. A tie claims a
    probability of 0.5 and counts half right, as a coin would (in `pair_accuracy` it is no win).

    Args:
        chosen, rejected: scores of the two responses. Length N each.
        bins: number of equally wide bins of confidence from 0.5 to 1.

    Returns:
        table, errors and fitted temperature.

    Raises:
        ValueError: lengths differ, no pair, a score that is not finite, or no bin.
    """
    chosen, rejected = _both_sides(chosen, rejected)
    if bins < 1:
        raise ValueError(f"bins={bins}: at least one is needed")
    difference = chosen - rejected
    pairs = pd.DataFrame({"confidence": expit(np.abs(difference)), "accuracy": (np.sign(difference) + 1) / 2})
    place = np.minimum(((pairs["confidence"] - 0.5) * 2 * bins).astype(int), bins - 1)
    groups = pairs.groupby((0.5 + place / (2 * bins)).rename("from"))
    table = groups.mean().assign(pairs=groups.size())
    error = np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["pairs"])
    temperature = _temperature(difference)
    with np.errstate(divide="ignore"):  # at temperature 0 a difference becomes infinite, a tie stays one
        tempered = np.divide(difference, temperature, out=np.zeros(len(difference)), where=difference != 0)
    return Calibration(
        table=table,
        error=float(error),
        brier=float(np.mean(expit(-difference) ** 2)),
        log_loss=_log_loss(difference),
        temperature=temperature,
        tempered_log_loss=_log_loss(tempered),
    )


def _temperature(difference: np.ndarray) -> float:
    """Return the T of the lowest log-loss. It is convex in b = 1/T, so the root of its slope -mean[d sigmoid(-b d)]."""
    if difference.mean() <= 0:
        return np.inf
    if difference.min() >= 0:
        return 0.0
    scale = np.abs(difference).max()
    unit = difference / scale

    def slope(b: float) -> float:
        return -float(np.mean(unit * expit(-b * unit)))

    high = 1.0
    while slope(high) < 0:
        high *= 2
    return float(scale / brentq(slope, 0, high))


def _log_loss(difference: np.ndarray) -> float:
    return float(np.logaddexp(0, -difference).mean())


def _both_sides(chosen: Sequence[float], rejected: Sequence[float], *others: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Return both sides' scores as floats, all finite; they and the others have one entry a pair."""
    chosen, rejected = np.asarray(chosen, dtype=float), np.asarray(rejected, dtype=float)
    sizes = [len(values) for values in (chosen, rejected, *others)]
    if len(set(sizes)) > 1 or not sizes[0]:
        raise ValueError(
            "need as many chosen as rejected scores as prompts (lengths, groups), at least one: got "
            f"{', '.join(map(str, sizes))}"
        )
    if not (np.isfinite(chosen).all() and np.isfinite(rejected).all()):
        row = int(np.flatnonzero(~np.isfinite(chosen) | ~np.isfinite(rejected))[0])
        raise ValueError(f"pair {row} has a score that is not finite: {chosen[row]} against {rejected[row]}")
    return chosen, rejected


def _table(
    right: np.ndarray, rows: dict[str, list[np.ndarray]], prompts: Sequence, resamples: int, seed: int
) -> pd.DataFrame:
    """Return a frame with the accuracy of each row's strata, as `accuracy_by` describes."""
    table = {
        name: [sum(map(sum, strata)), *_accuracy(right, strata, prompts, resamples, seed)]
        for name, strata in rows.items()
    }
    return pd.DataFrame.from_dict(table, orient="index", columns=["pairs", "accuracy", "low", "high"]).rename_axis(
        "group"
    )


def _accuracy(right: np.ndarray, strata: list[np.ndarray], prompts: Sequence, resamples: int, seed: int) -> Estimate:
    """Return the mean over strata (masks of pairs) of the share of right pairs; whole prompts are resampled."""
    if not all(stratum.any() for stratum in strata):
        return Estimate(np.nan, np.nan, np.nan)
    used = np.logical_or.reduce(strata)
    cluster, _ = pd.factorize(np.array([str(prompt) for prompt in prompts], dtype=object)[used], sort=True)
    sums = [np.bincount(cluster, weights=(stratum & part)[used]) for stratum in strata for part in (right, used)]

    def accuracy(*sums: np.ndarray, axis: int) -> np.ndarray:
        totals = [each.sum(axis) for each in sums]
        with np.errstate(invalid="ignore"):
            shares = [hits / size for hits, size in zip(totals[::2], totals[1::2], strict=True)]
        return np.nanmean(shares, axis=0)  # a resample can miss one of the strata, not all

    return resampled(accuracy, *sums, resamples=resamples, seed=seed)
