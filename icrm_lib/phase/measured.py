"""What rewards of tokens are worth where the truth is known, as one number a measure."""

from collections.abc import Sequence

import numpy as np

from icrm_lib.measures import change_at_quality, change_detection, token_agreement
from icrm_lib.phase.responses import Responses

# More is better in all of them. All lie in [0, 1] or [-1, 1], but for the ratio, which is at least 0.
MEASURES = {
    "accuracy": "pairs of different gold score whose better response has the higher reward",
    "agreement_expected": "Spearman correlation with E[gold score | prefix] inside a response, mean",
    "agreement_score": "Spearman correlation with the running score inside a response, mean",
    "agreement_top": "Spearman correlation with P(top score | prefix) inside a response, mean",
    "change_ratio": "mean |change| at tokens that reveal quality over mean |change| at all others",
    "change_auc": "area under the ROC curve of |change| for tokens that move P(top score | prefix)",
    "change_auc_unlikely": "the same among tokens of probability below 0.5",
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
    truth = responses.truth
    values = [known.values for known in truth]
    detection = change_detection(rows, values, [known.logprobs for known in truth])
    return {
        "accuracy": _accuracy(np.array([row[-1] for row in rows]), responses.gold),
        "agreement_expected": token_agreement(rows, [known.scores for known in truth])["within"],
        "agreement_score": token_agreement(rows, [known.clause_scores for known in truth])["within"],
        "agreement_top": token_agreement(rows, values)["within"],
        "change_ratio": change_at_quality(rows, [known.quality for known in truth])["ratio"],
        "change_auc": detection["all"],
        "change_auc_unlikely": detection["unlikely"],
    }


def exact_rewards(responses: Responses, values: Sequence[np.ndarray]) -> np.ndarray:
    """Lay what is known of tokens out like rewards, 0 outside the mask. Shape: (2B, T)."""
    rewards = np.zeros(responses.mask.shape)
    rewards[responses.mask] = np.concatenate(list(values))
    return rewards


def _accuracy(closing: np.ndarray, gold: np.ndarray) -> float:
    reward, better = (np.subtract(*np.split(values, 2)) for values in (closing, gold))
    differ = better != 0
    return float(np.mean(reward[differ] * better[differ] > 0)) if differ.any() else float("nan")
