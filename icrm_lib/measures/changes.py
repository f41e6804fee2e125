"""Where rewards change from token to token, and whether that is where something happened."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from icrm_lib.measures.layout import lay_out, overall_and_within, ratio, spearman

THIRDS = ("early", "middle", "late")


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
        "correlation": spearman(steps["change"][reveals], steps["quality"][reveals]),
        "ratio": ratio(size[reveals].mean(), size[~reveals].mean()),
        "share": ratio(size[reveals].sum(), size.sum()),
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
        result[name] = _auc(steps["change"][here & ~bad], steps["change"][here & bad])
    return result


def change_detection(
    rewards: Sequence[np.ndarray], values: Sequence[np.ndarray], logprobs: Sequence[np.ndarray]
) -> dict[str, float]:
    """How well the size of the reward's change tells the tokens at which the value changes, and its sign which way.

    An unlikely token need not matter: a name is as improbable as a verb and changes nothing. So the tokens with
    p_t < 0.5 are looked at on their own, too; there the probability alone says little.

    Args:
        rewards: as in `token_agreement`.
        values: per response, the value of each prefix, e.g. `TokenTruth.values`; equal where nothing changes.
        logprobs: per response, log p_t of each token. Each of shape (T_i,), finite.

    Returns:
        `all`, `unlikely`: area under the ROC curve of |r_t - r_{t-1}| for the tokens at which the value changes, over
        all tokens but the first of each response and over those of them with p_t < 0.5, in [0, 1]; `direction`:
        Spearman correlation of the two changes over the tokens at which the value changes, in [-1, 1]. nan where one
        of the two kinds of token is missing.

    Raises:
        ValueError: no token, a number that is not finite, or a response whose arrays differ in length.
    """
    tokens = lay_out(rewards=rewards, values=values, logprobs=logprobs)
    changes = tokens.groupby(level=0)[["rewards", "values"]].diff()
    steps = changes.assign(unlikely=tokens["logprobs"] < np.log(0.5)).dropna()
    size, moves = steps["rewards"].abs(), steps["values"] != 0
    unlikely = steps["unlikely"]
    return {
        "all": _auc(size[moves], size[~moves]),
        "unlikely": _auc(size[moves & unlikely], size[~moves & unlikely]),
        "direction": spearman(steps["rewards"][moves], steps["values"][moves]),
    }


def _auc(high: pd.Series, low: pd.Series) -> float:
    """Probability that one of `high` is above one of `low`, ties counting half; nan where one is empty."""
    if not (len(high) and len(low)):
        return float("nan")
    # Only the statistic is used, and "asymptotic" has the cheapest p-value.
    return float(mannwhitneyu(high, low, method="asymptotic").statistic / (len(high) * len(low)))


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
    tokens = lay_out(rewards=rewards, logprobs=logprobs)
    steps = tokens.assign(rewards=tokens["rewards"].groupby(level=0).diff().abs()).dropna()
    return overall_and_within(steps, len(rewards))


def _steps(rewards: Sequence[np.ndarray], quality: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return `change`, `quality` and `third` (0, 1, 2) of every token but the first of each response."""
    tokens = lay_out(rewards=rewards, quality=quality)
    groups = tokens["rewards"].groupby(level=0)
    third = 3 * groups.cumcount() // groups.transform("size")
    steps = tokens.assign(change=groups.diff(), third=third)[["change", "quality", "third"]]
    return steps.dropna(subset="change")
