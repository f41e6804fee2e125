"""What can be said of responses without a model: their length, and a bag of words, each fitted on other folds.

A reward model that does not exceed them has learned nothing about the text that counting does not show.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.sparse import csr_array, hstack
from scipy.special import expit

from icrm_lib.measures.pairs import pair_accuracy
from icrm_lib.measures.spans import area_under_roc

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_WORD = re.compile(r"\w+|[^\w\s]")


def pair_yardsticks(
    chosen: Sequence[str], rejected: Sequence[str], prompts: Sequence, folds: Sequence[int], *, seed: int = 0
) -> pd.DataFrame:
    """Pair accuracy of the longer response, of the shorter one, and of a bag of words.

    The bag of words is a Bradley-Terry model, logistic regression on the difference of log(1 + word count), held out
    fold by fold, as in `held_out_logits`.

    Args:
        chosen, rejected: texts of the responses. Length N each.
        prompts: what identifies each pair's prompt (hashable). Length N.
        folds: of each pair, as of `preferences.prompt_folds`: pairs of a prompt share one. At least 3. Length N.
        seed: of the intervals.

    Returns:
        rows `longer`, `shorter` (in characters; equal lengths are right in neither), `bag of words`; columns
        `accuracy`, `low`, `high` (95 %, prompt-clustered bootstrap).

    Raises:
        ValueError: lengths differ, fewer than 3 folds, or a prompt in two of them.
    """
    _check(folds, prompts, chosen, rejected)
    counts = _counts([*chosen, *rejected])
    difference = counts[: len(chosen)] - counts[len(chosen) :]
    right = held_out_logits(difference, np.ones(len(chosen)), folds, intercept=False)
    lengths = [np.array([len(text) for text in side], dtype=float) for side in (chosen, rejected)]
    nothing = np.zeros(len(right))
    sides = {"longer": lengths, "shorter": lengths[::-1], "bag of words": (right, nothing)}
    rows = {name: pair_accuracy(*side, prompts, seed=seed) for name, side in sides.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["accuracy", "low", "high"]).rename_axis("yardstick")


def outcome_yardsticks(
    texts: Sequence[str], right: Sequence[bool], prompts: Sequence, folds: Sequence[int], *, seed: int = 0
) -> pd.DataFrame:
    """How well the outcome of single responses is told by the majority, by their length, and by a bag of words.

    The latter two are logistic regressions with an intercept, held out fold by fold, as in `held_out_logits`: on the
    logarithm of the number of characters, and on log(1 + word count).

    Args:
        texts: of the responses. Length N.
        right: whether each is. Length N.
        prompts, folds, seed: as in `pair_yardsticks`.

    Returns:
        rows `majority`, `length`, `bag of words`; columns `accuracy`, `low`, `high` (as in `pair_yardsticks`), `auroc`
        (area under the ROC curve over all responses).

    Raises:
        ValueError: as `pair_yardsticks`, or an empty text.
    """
    _check(folds, prompts, texts, right)
    if empty := [row for row, text in enumerate(texts) if not text]:
        raise ValueError(f"response {empty[0]} is an empty text, which has no logarithm of a length; leave it out")
    right = np.asarray(right, dtype=bool)
    signs = np.where(right, 1.0, -1.0)
    lengths = np.log([[len(text)] for text in texts])
    features = {"length": csr_array(lengths - lengths.mean()), "bag of words": _counts(texts)}
    logits = {"majority": np.full(len(right), 1.0 if right.mean() >= 0.5 else -1.0)}
    logits |= {name: held_out_logits(values, signs, folds) for name, values in features.items()}
    nothing = np.zeros(len(right))
    rows = {
        name: [*pair_accuracy(signs * values, nothing, prompts, seed=seed), area_under_roc(values, right)]
        for name, values in logits.items()
    }
    columns = ["accuracy", "low", "high", "auroc"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("yardstick")


def held_out_logits(
    features: csr_array,
    signs: np.ndarray,
    folds: Sequence[int],
    *,
    intercept: bool = True,
    penalties: Sequence[float] = PENALTIES,
) -> np.ndarray:
    """Logits of L2-regularised logistic regression for each row, from weights fitted on the other folds alone.

    The weights w minimise mean log(1 + exp(-s x.w)) + penalty / 2 |w|^2, the intercept without penalty. The penalty has
    the lowest log-loss in cross-validation among the training folds, each held out in turn.

    Args:
        features: x. Shape: (N, K).
        signs: s, 1 or -1. Shape: (N,).
        folds: number of each row's fold, at least 3 of them. Length N.
        intercept: add a feature that is 1 everywhere; left out for differences, whose sign is a matter of order.
        penalties: to choose from.

    Returns:
        Shape: (N,).
    """
    folds, logits = np.asarray(folds), np.empty(len(signs))
    if intercept:
        features = csr_array(hstack([features, np.ones((features.shape[0], 1))]))
    penalised = np.ones(features.shape[1])
    penalised[features.shape[1] - intercept :] = 0

    def fitted(penalty: float, rows: np.ndarray) -> np.ndarray:
        return _weights(features[rows], signs[rows], penalty * penalised)

    def validated(penalty: float, rows: np.ndarray) -> float:
        """Log-loss over these rows, each fold of them predicted from the other ones."""
        total = 0.0
        for inner in np.unique(folds[rows]):
            held = rows & (folds == inner)
            of_held = features[held] @ fitted(penalty, rows & ~held)
            total += np.logaddexp(0, -signs[held] * of_held).sum()
        return total

    for fold in np.unique(folds):
        rest = folds != fold
        best = min(penalties, key=lambda penalty: validated(penalty, rest))  # noqa: B023 (used before the next fold)
        logits[~rest] = features[~rest] @ fitted(best, rest)
    return logits


def _weights(features: csr_array, signs: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Return the weights of the lowest penalised loss. Shapes: (N, K), (N,), (K,) -> (K,)."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (features @ weights)
        slope = -(features.T @ (signs * expit(-margins))) / len(signs) + penalty * weights
        return np.logaddexp(0, -margins).mean() + penalty @ weights**2 / 2, slope

    return minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x


def _counts(texts: Sequence[str]) -> csr_array:
    """Return log(1 + how often each word, in lower case, or punctuation mark stands in each text): (texts, words)."""
    words: dict[str, int] = {}
    rows = [[words.setdefault(word, len(words)) for word in _WORD.findall(text.lower())] for text in texts]
    places = np.repeat(np.arange(len(rows)), [len(row) for row in rows]), np.concatenate([[], *rows]).astype(int)
    counts = csr_array((np.ones(len(places[0])), places), shape=(len(texts), len(words)))
    counts.sum_duplicates()
    return counts.log1p()


def _check(folds: Sequence[int], prompts: Sequence, *others: Sequence) -> None:
    sizes = [len(values) for values in (folds, prompts, *others)]
    if len(set(sizes)) > 1:
        raise ValueError(f"need one text, prompt and fold a row on all sides: got {', '.join(map(str, sizes))}")
    if len(set(folds)) < 3:
        raise ValueError(f"{len(set(folds))} folds: one is held out and two choose the penalty, so give at least 3")
    fold_of: dict = {}
    for prompt, fold in zip(prompts, folds, strict=True):
        if fold_of.setdefault(prompt, fold) != fold:
            raise ValueError(f"prompt {prompt!r} is in folds {fold_of[prompt]} and {fold}; give each prompt one fold")
