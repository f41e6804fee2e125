"""How well token scores find the places that people marked, beside the base rate and controls that know no text.

Every measure takes one array a response, aligned with its tokens; a closing token, which nobody can mark, is left out
of scores and labels. A score is high where an error is suspected: the negative reward, or how far the reward falls.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from icrm_lib.measures.statistics import Estimate, resampled

ANY = "any"  # the row of all labels together


def area_under_roc(scores: np.ndarray, marked: np.ndarray) -> float:
    """Probability that a marked token scores above an unmarked one, ties counting half.

    With R the sum of the ranks of the n marked ones among all n + m: (R - n (n + 1) / 2) / (n m), the Mann-Whitney
    statistic over n m.

    Args:
        scores: finite. Shape: (T,).
        marked: bool. Shape: (T,).

    Returns:
        a number in [0, 1]; nan when all or none are marked.
    """
    n, m = int(marked.sum()), int((~marked).sum())
    if not (n and m):
        return float("nan")
    return float((rankdata(scores)[marked].sum() - n * (n + 1) / 2) / (n * m))


def average_precision(scores: np.ndarray, marked: np.ndarray) -> float:
    """Mean over the marked tokens of the precision at their scores: sum of (recall_k - recall_k-1) precision_k over the
    distinct scores from the highest on.

    Constant scores have the share of marked tokens. Args and Returns as in `area_under_roc`, but nan only when none is
    marked.
    """
    if not marked.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # of each group of equal scores
    found = np.cumsum(marked[order])[last]
    return float((np.diff(found, prepend=0) * found / (last + 1)).sum() / marked.sum())


def span_detection(scores: Sequence[np.ndarray], labels: Mapping[str, Sequence[np.ndarray]]) -> pd.DataFrame:
    """Area under the ROC curve and average precision of token scores for marked tokens, by label and for all labels.

    A label's tokens are held against those that bear no label at all; tokens of other labels are left out of its row.
    The base rate is the share of its tokens among these: what the average precision is for constant scores. Within
    responses, a measure is the mean over those that have tokens of both kinds; few tokens give random scores a higher
    average precision there than the base rate, so compare with `random` of `span_controls`.

    Args:
        scores: per response, the score of each token, high where an error is suspected. Each of shape (T_i,), finite.
        labels: label -> per response, which tokens bear it, as of `preferences.token_labels`. Each bool, of shape
            (T_i,).

    Returns:
        a row for "any" label and one for each; index `label`, columns `tokens` (number of its tokens), `base_rate`,
        `auroc`, `average_precision` over the tokens of all responses together; `responses` (how many have both kinds),
        `base_rate_within`, `auroc_within`, `average_precision_within`. All but the counts in [0, 1] or nan.

    Raises:
        ValueError: no token, a label called "any", a score that is not finite, labels that are not bool, or a response
            with another number of scores than of labels.
    """
    rows = {}
    for label, (kept, marked) in _tasks(scores, labels).items():
        together, truth = np.concatenate(kept), np.concatenate(marked)
        within = _by_response(kept, marked)
        means = within.mean().add_suffix("_within")
        rows[label] = {
            "tokens": int(truth.sum()),
            "base_rate": float(truth.mean()) if len(truth) else float("nan"),
            "auroc": area_under_roc(together, truth),
            "average_precision": average_precision(together, truth),
            "responses": int(within["auroc"].notna().sum()),
        } | means.to_dict()
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("label")


def detection_by_response(
    scores: Sequence[np.ndarray], labels: Mapping[str, Sequence[np.ndarray]], label: str = ANY
) -> pd.DataFrame:
    """Base rate, area under the ROC curve and average precision within each response; see `detection_estimates`.

    Args, Raises: as `span_detection`; `label` is one of its rows.

    Returns:
        a row a response, in their order; columns `base_rate`, `auroc`, `average_precision`, nan where a response does
        not have tokens of both kinds.
    """
    tasks = _tasks(scores, labels)
    if label not in tasks:
        raise ValueError(f"no label {label!r}; there are {', '.join(tasks)}")
    return _by_response(*tasks[label])


def detection_estimates(rows: pd.DataFrame, prompts: Sequence, *, seed: int = 0) -> dict[str, Estimate]:
    """Means of the measures within responses, with 95 % intervals that resample whole prompts.

    Args:
        rows: of `detection_by_response`, or the differences of two of them (a model's less a control's). N rows.
        prompts: what identifies each response's prompt (hashable). Length N.
        seed: of the resampling.

    Returns:
        column -> its mean over the responses that have it; nan where none has.

    Raises:
        ValueError: another number of prompts than of rows.
    """
    if len(rows) != len(prompts):
        raise ValueError(f"{len(rows)} responses but {len(prompts)} prompts; give the prompt of each response")
    codes, _ = pd.factorize(np.array([str(prompt) for prompt in prompts], dtype=object), sort=True)
    estimates = {}
    for name, values in rows.items():
        known = values.notna().to_numpy()
        if not known.any():
            estimates[name] = Estimate(np.nan, np.nan, np.nan)
            continue
        cluster = np.unique(codes[known], return_inverse=True)[1]
        sums = np.bincount(cluster, weights=values[known]), np.bincount(cluster)
        estimates[name] = resampled(_mean, *sums, seed=seed)
    return estimates


def _mean(totals: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    return totals.sum(axis) / counts.sum(axis)


def span_controls(lengths: Sequence[int], *, seed: int = 0) -> dict[str, list[np.ndarray]]:
    """Token scores that know no text, to be measured like a model's: what they reach, a model has to exceed.

    Args:
        lengths: number of tokens T of each response.
        seed: of the random one.

    Returns:
        `position` (token t = 0, 1, ... of T: (t + 1) / T, so late tokens are suspected), `length` (T: tokens of long
        responses are suspected; it says nothing within one), `random` (uniform). One array a response, of shape (T,).
    """
    rng = np.random.default_rng(seed)
    return {
        "position": [np.arange(1, length + 1) / length for length in lengths],
        "length": [np.full(length, float(length)) for length in lengths],
        "random": [rng.random(length) for length in lengths],
    }


def _tasks(
    scores: Sequence[np.ndarray], labels: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
    """Return for each label the scores that count, and which of them are marked, a response each."""
    scores = [np.asarray(row, dtype=float) for row in scores]
    if ANY in labels:
        raise ValueError(f"a label is called {ANY!r}, the name of the row of all labels together; rename it")
    if not sum(map(len, scores)):
        raise ValueError(f"scores of {len(scores)} responses hold no token; give at least one")
    for row in (row for row, values in enumerate(scores) if not np.isfinite(values).all()):
        raise ValueError(f"response {row} has a score that is not finite; find where it came from before measuring")
    for label, arrays in labels.items():
        _check(scores, label, arrays)
    union = [np.zeros(len(row), dtype=bool) for row in scores]
    for arrays in labels.values():
        union = [known | more for known, more in zip(union, arrays, strict=True)]
    tasks = {ANY: (scores, union)}
    for label, arrays in labels.items():
        used = [mine | ~anything for mine, anything in zip(arrays, union, strict=True)]
        tasks[label] = tuple([row[of] for row, of in zip(rows, used, strict=True)] for rows in (scores, arrays))
    return tasks


def _check(scores: list[np.ndarray], label: str, arrays: Sequence[np.ndarray]) -> None:
    if len(arrays) != len(scores):
        raise ValueError(f"scores of {len(scores)} responses but {label!r} of {len(arrays)}; give one array each")
    for row, (values, marked) in enumerate(zip(scores, arrays, strict=True)):
        if marked.dtype != bool or marked.shape != values.shape:
            raise ValueError(
                f"response {row} has scores of shape {values.shape} but {label!r} of shape {marked.shape} and type "
                f"{marked.dtype}: need one bool a token (is the closing token in one of them alone?)"
            )


def _by_response(scores: list[np.ndarray], marked: list[np.ndarray]) -> pd.DataFrame:
    rows = np.full((len(scores), 3), np.nan)
    for i, (values, truth) in enumerate(zip(scores, marked, strict=True)):
        if truth.any() and not truth.all():
            rows[i] = truth.mean(), area_under_roc(values, truth), average_precision(values, truth)
    return pd.DataFrame(rows, columns=["base_rate", "auroc", "average_precision"])
