"""What rewards of tokens are worth where the truth is known, as one number a measure."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import mannwhitneyu

from icrm_lib.measures import change_at_quality, token_agreement
from icrm_lib.phase.responses import Responses

SURPRISING = 0.5  # a token of lower probability
# More is better in all of them. All lie in [0, 1] or [-1, 1], but for the ratio, which is at least 0.
MEASURES = {
    "accuracy": "pairs of different gold score whose better response has the higher reward",
    "agreement_top": "Spearman correlation with P(top score) inside a response, mean",
    "agreement_score": "Spearman correlation with the running score inside a response, mean",
    "change_ratio": "mean |change| at tokens that reveal quality over mean |change| at all others",
    "change_auc": "area under the ROC curve of |change| for tokens that move P(top score)",
    "change_auc_surprising": "the same among tokens of probability below 0.5",
}


def measure(rewards: np.ndarray, responses: Responses) -> dict[str, float]:
    """Measure rewards of tokens against the truth.

    Args:
        rewards: finite on response tokens. Shape: (2B, T).
        responses: B pairs.

    Returns:
        by name in `MEASURES`; nan where a measure is not defined.
    """
    rows = [row[mask] for row, mask in zip(rewards, responses.mask, strict=True)]
    values = [truth.values for truth in responses.truth]
    moves = np.concatenate([np.diff(row) != 0 for row in values])
    sizes = np.concatenate([np.abs(np.diff(row)) for row in rows])
    surprising = np.concatenate([truth.logprobs[1:] < np.log(SURPRISING) for truth in responses.truth])
    return {
        "accuracy": _accuracy(np.array([row[-1] for row in rows]), responses.gold),
        "agreement_top": token_agreement(rows, values)["within"],
        "agreement_score": token_agreement(rows, [truth.clause_scores for truth in responses.truth])["within"],
        "change_ratio": change_at_quality(rows, [truth.quality for truth in responses.truth])["ratio"],
        "change_auc": area_under_curve(sizes, moves),
        "change_auc_surprising": area_under_curve(sizes[surprising], moves[surprising]),
    }


def exact_rewards(responses: Responses, values: Sequence[np.ndarray]) -> np.ndarray:
    """Lay what is known of tokens out like rewards, 0 outside the mask. Shape: (2B, T)."""
    rewards = np.zeros(responses.mask.shape)
    rewards[responses.mask] = np.concatenate(list(values))
    return rewards


def area_under_curve(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive has the higher score than another, ties counting half; nan without both kinds.

    Args:
        scores: shape (N,).
        positive: bool. Shape: (N,).
    """
    high, low = scores[positive], scores[~positive]
    if not len(high) or not len(low):
        return float("nan")
    # Only the statistic is used, and "asymptotic" has the cheapest p-value.
    return float(mannwhitneyu(high, low, method="asymptotic").statistic / (len(high) * len(low)))


def _accuracy(closing: np.ndarray, gold: np.ndarray) -> float:
    reward, better = (np.subtract(*np.split(values, 2)) for values in (closing, gold))
    differ = better != 0
    return float(np.mean(reward[differ] * better[differ] > 0)) if differ.any() else float("nan")
