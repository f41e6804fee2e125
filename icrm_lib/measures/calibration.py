"""How far rewards can be read as probabilities: those of tokens as prefix values, those of pairs as preferences."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit

from icrm_lib.measures.pairs import both_sides
from icrm_lib.measures.tokens import lay_out, ratio, refuse

SLOPE_LIMIT = 50.0  # of the logistic map, per standard deviation; rewards that separate 0 from 1 have no finite slope


def token_calibration(
    rewards: Sequence[np.ndarray],
    values: Sequence[np.ndarray],
    fit_rewards: Sequence[np.ndarray],
    fit_values: Sequence[np.ndarray],
    *,
    bins: int = 10,
) -> dict[str, float]:
    """How well token rewards give the values of prefixes, as logits up to a scale and a shift.

    The two numbers are fitted on other responses by maximum likelihood to soft targets (Platt 1999, "Probabilistic
    outputs for support vector machines"): with z = (r - mean) / standard deviation of the fitted rewards,

        predicted = sigmoid(a + b z),   (a, b) = argmin mean[log(1 + exp(a + b z)) - value (a + b z)].

    Args:
        rewards: per response, the reward at each token. Each of shape (T_i,), finite.
        values: per response, the value of each prefix. Each of shape (T_i,), in [0, 1].
        fit_rewards: rewards of the responses to fit on. Each of shape (T_j,), finite.
        fit_values: values of the responses to fit on. Each of shape (T_j,), in [0, 1].
        bins: >= 1. Groups of about equally many tokens, by predicted value; equal predictions share a group.

    Returns:
        `error`: expected calibration error, mean over tokens of |mean predicted - mean value| of their group, in
        [0, 1]; `brier`: mean (predicted - value)^2, in [0, 1]; `skill`: 1 - brier / that of predicting the mean of
        fit_values everywhere, at most 1 (nan where that one is 0); `slope`: b, 0 for constant fit_rewards, and
        stopped at +-50, which rewards that separate 0 from 1 would exceed.

    Raises:
        ValueError: no token, bins below 1, a reward that is not finite, a value outside [0, 1], or a response has
            another number of rewards than of values.
    """
    if bins < 1:
        raise ValueError(f"bins {bins}: must be >= 1; use 10")
    fit = lay_out(fit_rewards=fit_rewards, fit_values=fit_values)
    tokens = lay_out(rewards=rewards, values=values)
    for column in (tokens["values"], fit["fit_values"]):
        refuse(column, (column >= 0) & (column <= 1), "in [0, 1]; give probabilities, not logits")
    centre, spread = fit["fit_rewards"].mean(), fit["fit_rewards"].std(ddof=0) or 1.0
    z_fit, z = ((rewards - centre).to_numpy() / spread for rewards in (fit["fit_rewards"], tokens["rewards"]))
    intercept, slope = _logistic_map(z_fit, fit["fit_values"].to_numpy())
    predicted = expit(intercept + slope * z)
    excess = predicted - tokens["values"].to_numpy()
    # inverted_cdf takes edges from the predictions themselves, so that rounding moves no token to another group.
    edges = np.quantile(predicted, np.arange(1, bins) / bins, method="inverted_cdf")
    brier, baseline = np.mean(excess**2), np.mean((tokens["values"] - fit["fit_values"].mean()) ** 2)
    return {
        "error": float(np.abs(np.bincount(np.searchsorted(edges, predicted), weights=excess)).sum() / len(tokens)),
        "brier": float(brier),
        "skill": 1 - ratio(brier, baseline),
        "slope": slope,
    }


def _logistic_map(z: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Return (a, b), each within +-SLOPE_LIMIT, of the likeliest sigmoid(a + b z) for targets in [0, 1]."""
    start = float(np.clip(logit(np.clip(targets.mean(), 1e-15, 1 - 1e-15)), -SLOPE_LIMIT, SLOPE_LIMIT))
    if np.ptp(z) == 0:
        return start, 0.0

    def loss(params: np.ndarray) -> tuple[float, np.ndarray]:
        logits = params[0] + params[1] * z
        excess = expit(logits) - targets
        return np.mean(np.logaddexp(0, logits) - targets * logits), np.array([excess.mean(), (excess * z).mean()])

    bounds = [(-SLOPE_LIMIT, SLOPE_LIMIT)] * 2
    options = {"ftol": 1e-15, "gtol": 1e-10}
    result = minimize(loss, [start, 0.0], jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return float(result.x[0]), float(result.x[1])


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
    chosen, rejected = both_sides(chosen, rejected)
    if bins < 1:
        raise ValueError(f"bins={bins}: at least one is needed")
    difference = chosen - rejected
    pairs = pd.DataFrame({"confidence": expit(np.abs(difference)), "accuracy": (np.sign(difference) + 1) / 2})
    place = np.minimum(((pairs["confidence"] - 0.5) * 2 * bins).astype(int), bins - 1)
    groups = pairs.groupby((0.5 + place / (2 * bins)).rename("from"))
    table = groups.mean().assign(pairs=groups.size())
    error = np.average((table["accuracy"] - table["confidence"]).abs(), weights=table["pairs"])
    temperature = _temperature(difference)
    return Calibration(
        table=table,
        error=float(error),
        brier=float(np.mean(expit(-difference) ** 2)),
        log_loss=_log_loss(difference),
        temperature=temperature,
        tempered_log_loss=_log_loss(_divided(difference, temperature)),
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


def _divided(difference: np.ndarray, temperature: float) -> np.ndarray:
    """Return the differences at a temperature; at 0 and infinity the limit."""
    if temperature == 0:
        return np.where(difference > 0, np.inf, 0.0)  # none is negative, see _temperature
    return difference / temperature


def _log_loss(difference: np.ndarray) -> float:
    return float(np.logaddexp(0, -difference).mean())
