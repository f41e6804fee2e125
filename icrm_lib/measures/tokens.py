"""How token rewards compare with what is known of the tokens: a truth, controls, quality, probability, prefix values.

Every measure takes one array per response, aligned with the response's tokens, the closing token included. Ranks see
every last bit, so what is equal in truth must be equal in the arrays; `testbed.truth.known_truth` takes care of that.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit

from icrm_lib.measures.layout import correlations_by_response, lay_out, overall_and_within, ratio, refuse

# Rewards of all response tokens: token ids, index of the first response token -> one array a row.
TokenScorer = Callable[[Sequence[list[int]], Sequence[int]], list[np.ndarray]]
DEGENERATE = 1e-9  # a residual this small, relative to what it is a residual of, is rounding
SLOPE_LIMIT = 50.0  # of the logistic map, per standard deviation; rewards that separate 0 from 1 have no finite slope


def token_agreement(rewards: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> dict[str, float]:
    """Rank correlation of token rewards with a known truth per token.

    Args:
        rewards: per response, the reward at each token. Each of shape (T_i,), finite.
        truth: per response, what the reward should rank, e.g. `TokenTruth.values`. Each of shape (T_i,), finite.

    Returns:
        `overall`: Spearman correlation over the tokens of all responses; `within`: mean of the responses' own
        correlations (responses whose truth or reward is constant are left out; nan if none is left). Both in [-1, 1].

    Raises:
        ValueError: no token, a number that is not finite, or a response has another number of rewards than of truths.
    """
    return overall_and_within(lay_out(rewards=rewards, truth=truth), len(rewards))


def agreement_by_response(rewards: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Rank correlation of token rewards with a known truth per token, for each response on its own.

    Args, Raises: as `token_agreement`.

    Returns:
        Spearman correlations in [-1, 1], nan where truth or reward is constant. Shape: (N,).
    """
    return correlations_by_response(lay_out(rewards=rewards, truth=truth), len(rewards))


def partial_agreement(
    rewards: Sequence[np.ndarray], truth: Sequence[np.ndarray], controls: Sequence[np.ndarray]
) -> dict[str, float]:
    """Partial Spearman correlation: how rewards rank the truth beyond what the controls already say.

    Reward, truth and each control are replaced by their ranks; the controls' ranks, with an intercept, are regressed
    out of the other two, and what is left of these is correlated. With one control c this is

        (s_rt - s_rc s_tc) / sqrt((1 - s_rc^2) (1 - s_tc^2)),   s = Spearman correlations.

    Args:
        rewards, truth: as in `token_agreement`.
        controls: per response, what could explain the agreement, e.g. position and cumulated log-probability. Each of
            shape (T_i, K), finite, with one K >= 0.

    Returns:
        `overall`: with ranks over the tokens of all responses; `within`: mean over responses of the correlation with
        ranks inside the response. A correlation needs more than K + 2 tokens, and a reward and a truth that are not a
        linear function of the controls in ranks; responses without are left out. Both in [-1, 1] or nan.

    Raises:
        ValueError: no token, a number that is not finite, or a response whose arrays differ in length or in K.
    """
    arrays = [np.asarray(array, dtype=float) for array in controls]
    for row, array in enumerate(arrays):
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[1]:
            raise ValueError(
                f"response {row} has controls of shape {array.shape}: need (tokens, K) with the K of response 0, of "
                f"shape {arrays[0].shape}; stack them with np.column_stack"
            )
    n_controls = arrays[0].shape[1] if arrays else 0
    columns = {f"controls {k}": [array[:, k] for array in arrays] for k in range(n_controls)}
    tokens = lay_out(rewards=rewards, truth=truth, **columns)
    within = tokens.groupby(level=0).rank().groupby(level=0).apply(_partial_correlation)
    return {"overall": _partial_correlation(tokens.rank()), "within": float(within.mean())}


def _partial_correlation(ranks: pd.DataFrame) -> float:
    """Correlate columns 0 and 1 of ranks (T, 2 + K) after regressing the others out of both; nan if degenerate."""
    if len(ranks) <= ranks.shape[1]:
        return float("nan")
    centred = (ranks - ranks.mean()).to_numpy()  # in place of an intercept
    both, controls = centred[:, :2], centred[:, 2:]
    residuals = both - controls @ np.linalg.lstsq(controls, both)[0]
    lengths = np.linalg.norm(residuals, axis=0)
    if (lengths <= DEGENERATE * np.linalg.norm(both, axis=0)).any():
        return float("nan")
    return float(np.clip(residuals[:, 0] @ residuals[:, 1] / lengths.prod(), -1, 1))


def without_controls(rewards: Sequence[np.ndarray], controls: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Regress controls out of rewards, over the tokens of all responses together, with an intercept.

    Args:
        rewards: as in `token_agreement`.
        controls: per response, what is regressed out, e.g. log-probability and position. Each of shape (T_i, K).

    Returns:
        per response what is left, uncorrelated with every control over all tokens. Each of shape (T_i,).

    Raises:
        ValueError: a response whose arrays differ in length.
    """
    lengths = [len(row) for row in rewards]
    if lengths != [len(row) for row in controls]:
        raise ValueError(f"responses of {lengths} rewards have controls for {[len(row) for row in controls]} tokens")
    flat = np.concatenate([np.asarray(row, dtype=float) for row in rewards])
    design = np.column_stack([np.ones(len(flat)), np.concatenate([np.asarray(row, dtype=float) for row in controls])])
    left = flat - design @ np.linalg.lstsq(design, flat, rcond=None)[0]
    return np.split(left, np.cumsum(lengths)[:-1])


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
        rewards: as in `token_agreement`.
        values: per response, the value of each prefix. Each of shape (T_i,), in [0, 1].
        fit_rewards, fit_values: the same of the responses to fit on.
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
