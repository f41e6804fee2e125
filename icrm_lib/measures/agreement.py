"""Whether token rewards order prefixes as a known truth does, also beyond what controls explain."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from icrm_lib.measures.tokens import lay_out, spearman

DEGENERATE = 1e-9  # a residual this small, relative to what it is a residual of, is rounding


def agreement_by_response(rewards: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Rank correlation of token rewards with a known truth per token, for each response on its own.

    Args:
        rewards: per response, the reward at each token. Each of shape (T_i,), finite.
        truth: per response, what the reward should rank, e.g. `TokenTruth.values`. Each of shape (T_i,), finite.

    Returns:
        Spearman correlations in [-1, 1], nan where truth or reward is constant. Shape: (N,).

    Raises:
        ValueError: no token, a number that is not finite, or a response has another number of rewards than of truths.
    """
    return _by_response(lay_out(rewards=rewards, truth=truth), len(rewards))


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


def partial_agreement(
    rewards: Sequence[np.ndarray], truth: Sequence[np.ndarray], controls: Sequence[np.ndarray]
) -> dict[str, float]:
    """Partial Spearman correlation: how rewards rank the truth beyond what the controls already say.

    Reward, truth and each control are replaced by their ranks; the controls' ranks, with an intercept, are regressed
    out of the other two, and what is left of these is correlated. With one control c this is

        (s_rt - s_rc s_tc) / sqrt((1 - s_rc^2) (1 - s_tc^2)),   s = Spearman correlations.

    Args:
        rewards: per response, the reward at each token. Each of shape (T_i,), finite.
        truth: per response, what the reward should rank. Each of shape (T_i,), finite.
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
    ranks = tokens.groupby(level=0).rank().to_numpy()
    blocks = np.split(ranks, np.cumsum([len(array) for array in rewards])[:-1])
    within = pd.Series([_partial_correlation(block) for block in blocks])
    return {"overall": _partial_correlation(tokens.rank().to_numpy()), "within": float(within.mean())}


def _partial_correlation(ranks: np.ndarray) -> float:
    """Correlate columns 0 and 1 of ranks (T, 2 + K) after regressing the others out of both; nan if degenerate."""
    if len(ranks) <= ranks.shape[1]:
        return float("nan")
    centred = ranks - ranks.mean(axis=0)  # in place of an intercept
    both, controls = centred[:, :2], centred[:, 2:]
    residuals = both - controls @ np.linalg.lstsq(controls, both)[0]
    lengths = np.linalg.norm(residuals, axis=0)
    if (lengths <= DEGENERATE * np.linalg.norm(both, axis=0)).any():
        return float("nan")
    return float(np.clip(residuals[:, 0] @ residuals[:, 1] / lengths.prod(), -1, 1))


def without_controls(rewards: Sequence[np.ndarray], controls: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Regress controls out of rewards, over the tokens of all responses together, with an intercept.

    Args:
        rewards: per response, the reward at each token. Each of shape (T_i,), finite.
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


def overall_and_within(tokens: pd.DataFrame, n: int) -> dict[str, float]:
    """Correlate the ranks of the two columns over all tokens, and on the mean inside each of n responses."""
    within = pd.Series(_by_response(tokens, n)).mean()  # skips nan, and is nan when nothing else is there
    return {"overall": spearman(tokens.iloc[:, 0], tokens.iloc[:, 1]), "within": float(within)}


def _by_response(tokens: pd.DataFrame, n: int) -> np.ndarray:
    """Spearman correlation of the two columns inside each of n responses, (n,); nan if a column is constant."""
    groups = tokens.groupby(level=0)
    # The mean rank is known. Subtracting it is exact, so a constant column leaves exact zeros, and 0 / 0 is nan.
    ranks = groups.rank().sub((groups[tokens.columns[0]].transform("size") + 1) / 2, axis=0)
    x, y = ranks.iloc[:, 0], ranks.iloc[:, 1]
    sums = pd.DataFrame({"xy": x * y, "xx": x * x, "yy": y * y}).groupby(level=0).sum().reindex(range(n))
    return (sums["xy"] / np.sqrt(sums["xx"] * sums["yy"])).to_numpy()
