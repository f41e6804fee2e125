"""How token rewards compare with what is known of the tokens: a truth, controls, quality, probability, prefix values.

Every measure takes one array per response, aligned with the response's tokens, the closing token included. Ranks see
every last bit, so what is equal in truth must be equal in the arrays; `testbed.truth.known_truth` takes care of that.
"""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import mannwhitneyu, spearmanr

# Rewards of all response tokens: token ids, index of the first response token -> one array a row.
TokenScorer = Callable[[Sequence[list[int]], Sequence[int]], list[np.ndarray]]
THIRDS = ("early", "middle", "late")
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
    return _overall_and_within(_lay_out(rewards=rewards, truth=truth), len(rewards))


def agreement_by_response(rewards: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Rank correlation of token rewards with a known truth per token, for each response on its own.

    Args, Raises: as `token_agreement`.

    Returns:
        Spearman correlations in [-1, 1], nan where truth or reward is constant. Shape: (N,).
    """
    return _by_response(_lay_out(rewards=rewards, truth=truth), len(rewards))


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
    tokens = _lay_out(rewards=rewards, truth=truth, **columns)
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


def change_at_quality(rewards: Sequence[np.ndarray], quality: Sequence[np.ndarray]) -> dict[str, float]:
    """Whether rewards move at the tokens that reveal quality, and in its direction.

    The change at token t is r_t - r_{t-1}; the first token of a response has none and is left out. The exact value
    does not reach a correlation or a share of 1: it moves by what is news, which a bad clause after bad ones hardly
    is. So report its numbers beside those of a model.

    Args:
        rewards: as in `token_agreement`.
        quality: per response, `TokenTruth.quality`: -1, 0 or 1 at quality tokens, else nan. Each of shape (T_i,).

    Returns:
        `correlation`: Spearman correlation of change and quality over all quality tokens, in [-1, 1] (nan if one is
        constant); `ratio`: mean |change| at quality tokens over mean |change| at all others, at least 0 (nan where
        nothing changes elsewhere); `share`: of the total |change|, what falls on quality tokens, in [0, 1] (nan where
        nothing changes).

    Raises:
        ValueError: no token, a reward that is not finite, a quality other than -1, 0, 1 or nan, or a response has
            another number of rewards than of qualities.
    """
    steps = _steps(rewards, quality)
    reveals, size = steps["quality"].notna(), steps["change"].abs()
    return {
        "correlation": _spearman(steps["change"][reveals], steps["quality"][reveals]),
        "ratio": _ratio(size[reveals].mean(), size[~reveals].mean()),
        "share": _ratio(size[reveals].sum(), size.sum()),
    }


def localisation(rewards: Sequence[np.ndarray], quality: Sequence[np.ndarray]) -> dict[str, float]:
    """How well the change of the reward singles out the bad clauses, by where in the response they stand.

    With U the Mann-Whitney statistic of the changes r_t - r_{t-1} at quality tokens, AUC = U / (n m): the probability
    that the change at a token of quality -1 is below that at one of quality 0 or 1, ties counting half. `clause_scores`
    reach 1; the exact value does not, and less so late, where the outcome is often settled.

    Args:
        rewards, quality: as in `change_at_quality`.

    Returns:
        AUC in [0, 1] for the tokens of the `early`, `middle` and `late` third of their responses (token t of T stands
        in third floor(3 t / T)), over all responses; nan if a third lacks one of the two kinds.

    Raises:
        ValueError: as in `change_at_quality`.
    """
    steps = _steps(rewards, quality).dropna()
    bad = steps["quality"] < 0
    result = {}
    for third, name in enumerate(THIRDS):
        here = steps["third"] == third
        low, high = steps["change"][here & bad], steps["change"][here & ~bad]
        both = len(low) and len(high)
        # Only the statistic is used, and "asymptotic" has the cheapest p-value.
        statistic = mannwhitneyu(high, low, method="asymptotic").statistic if both else 0.0
        result[name] = _ratio(statistic, len(low) * len(high))
    return result


def smoothness(rewards: Sequence[np.ndarray], logprobs: Sequence[np.ndarray]) -> dict[str, float]:
    """Rank correlation of |r_t - r_{t-1}| with the probability p_t of the token that connects the two prefixes.

    The premise of ICRM (arXiv 2506.09096) is a negative one: the likelier the token, the closer the two rewards.

    Args:
        rewards: as in `token_agreement`.
        logprobs: per response, log p_t of each token. Each of shape (T_i,), finite.

    Returns:
        `overall` and `within`, as in `token_agreement`; the first token of each response has no change and is left out.

    Raises:
        ValueError: no token, a number that is not finite, or a response has another number of rewards than of
            log-probabilities.
    """
    tokens = _lay_out(rewards=rewards, logprobs=logprobs)
    steps = tokens.assign(rewards=tokens["rewards"].groupby(level=0).diff().abs()).dropna()
    return _overall_and_within(steps, len(rewards))


def _steps(rewards: Sequence[np.ndarray], quality: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return `change`, `quality` and `third` (0, 1, 2) of every token but the first of each response."""
    tokens = _lay_out(rewards=rewards, quality=quality)
    groups = tokens["rewards"].groupby(level=0)
    third = 3 * groups.cumcount() // groups.transform("size")
    steps = tokens.assign(change=groups.diff(), third=third)[["change", "quality", "third"]]
    return steps.dropna(subset="change")


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
    fit = _lay_out(fit_rewards=fit_rewards, fit_values=fit_values)
    tokens = _lay_out(rewards=rewards, values=values)
    for column in (tokens["values"], fit["fit_values"]):
        _refuse(column, (column >= 0) & (column <= 1), "in [0, 1]; give probabilities, not logits")
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
        "skill": 1 - _ratio(brier, baseline),
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


def _overall_and_within(tokens: pd.DataFrame, n: int) -> dict[str, float]:
    """Correlate the ranks of the two columns over all tokens, and on the mean inside each of n responses."""
    within = pd.Series(_by_response(tokens, n)).mean()  # skips nan, and is nan when nothing else is there
    return {"overall": _spearman(tokens.iloc[:, 0], tokens.iloc[:, 1]), "within": float(within)}


def _by_response(tokens: pd.DataFrame, n: int) -> np.ndarray:
    """Spearman correlation of the two columns inside each of n responses, (n,); nan if a column is constant."""
    groups = tokens.groupby(level=0)
    # The mean rank is known. Subtracting it is exact, so a constant column leaves exact zeros, and 0 / 0 is nan.
    ranks = groups.rank().sub((groups[tokens.columns[0]].transform("size") + 1) / 2, axis=0)
    x, y = ranks.iloc[:, 0], ranks.iloc[:, 1]
    sums = pd.DataFrame({"xy": x * y, "xx": x * x, "yy": y * y}).groupby(level=0).sum().reindex(range(n))
    return (sums["xy"] / np.sqrt(sums["xx"] * sums["yy"])).to_numpy()


def _lay_out(**columns: Sequence[np.ndarray]) -> pd.DataFrame:
    """Lay the tokens of all responses end to end: a column an argument, indexed by the number of the response."""
    (name, first), *others = columns.items()
    for other, arrays in others:
        if len(arrays) != len(first):
            raise ValueError(f"{name} of {len(first)} responses but {other} of {len(arrays)}; give one array each")
        for row, (a, b) in enumerate(zip(first, arrays, strict=True)):
            if len(a) != len(b):
                raise ValueError(f"response {row} has {len(a)} {name} but {len(b)} {other}: need one of each a token")
    lengths = [len(array) for array in first]
    if not sum(lengths):
        raise ValueError(f"{name} of {len(first)} responses hold no token; give at least one")
    data = {name: np.concatenate([np.asarray(a, dtype=float) for a in arrays]) for name, arrays in columns.items()}
    tokens = pd.DataFrame(data, index=np.repeat(np.arange(len(lengths)), lengths))
    for name in tokens:
        if name == "quality":  # nan says that the token reveals none
            _refuse(tokens[name], tokens[name].isna() | tokens[name].isin([-1, 0, 1]), "-1, 0, 1 or nan")
        else:
            _refuse(tokens[name], np.isfinite(tokens[name]), "finite; find where it came from before measuring")
    return tokens


def _refuse(column: pd.Series, valid: pd.Series, rule: str) -> None:
    """Raise ValueError for the first token that is not valid."""
    for place in np.flatnonzero(~valid):
        row = column.index[place]
        token = place - np.searchsorted(column.index, row)
        raise ValueError(f"response {row} has {column.iloc[place]} in {column.name} at token {token}: must be {rule}")


def _spearman(x: pd.Series, y: pd.Series) -> float:
    """Spearman correlation; nan, without a warning, if one side is constant."""
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return float("nan") if constant else float(spearmanr(x, y).statistic)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")
