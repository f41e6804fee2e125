"""What picks are worth: exactly over all subsets of the candidates, under a judge, where the answer is known."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import gammaln

from icrm_lib.best_of_n.labelled import Labelled, read_labelled
from icrm_lib.measures.answers import final_answers
from icrm_lib.measures.statistics import Estimate, means_over_prompts
from icrm_lib.rows import BadRow, file_rows


def pick_weights(scores: Sequence[float], n: int) -> np.ndarray:
    """Probability of each of N candidates to be the pick among n drawn without replacement, ties broken evenly.

    With the scores in order and c_g the number of candidates at or below the tie group g, the best of a random
    n-subset lies in g with probability [C(c_g, n) - C(c_{g-1}, n)] / C(N, n), shared evenly inside the group.

    Args:
        scores: finite. Shape: (N,).
        n: 1..N.

    Returns:
        probabilities with sum 1. Shape: (N,).

    Raises:
        ValueError: n out of range, or a score that is not finite.
    """
    scores = np.asarray(scores, dtype=float)
    if not 1 <= n <= len(scores):
        raise ValueError(f"n {n}: must be 1..{len(scores)}, the number of candidates")
    if not np.isfinite(scores).all():
        raise ValueError(f"candidate {int(np.flatnonzero(~np.isfinite(scores))[0])} has a score that is not finite")
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.concatenate([[0], np.cumsum(size)])
    share = np.zeros(len(below))
    possible = below >= n
    c, total = below[possible].astype(float), float(len(scores))
    log_ratio = (gammaln(c + 1) - gammaln(c - n + 1)) - (gammaln(total + 1) - gammaln(total - n + 1))
    share[possible] = np.exp(log_ratio)  # C(c, n) / C(N, n)
    share[-1] = 1.0
    return (np.diff(share) / size)[group]


def expected_best_of_n(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Expected value of the highest-scoring of n candidates, exact over all size-n subsets of N, in O(N log N).

    Args:
        scores: what the pick is made by. Shape: (N,).
        values: what the pick is worth, e.g. its gold score. Shape: (N,).
        n: 1..N; n = 1 gives the mean of `values`.

    Raises:
        ValueError: lengths differ, n out of range, or a score that is not finite.
    """
    if len(scores) != len(values):
        raise ValueError(f"{len(scores)} scores but {len(values)} values; each candidate needs both")
    return float(pick_weights(scores, n) @ np.asarray(values, dtype=float))


def best_of_n_kl(n: np.ndarray | float) -> np.ndarray | float:
    """Upper bound on the KL divergence of best-of-n from the policy, log n - (n - 1) / n nats (arXiv 2204.05862)."""
    return np.log(n) - (np.asarray(n) - 1) / n


def win_tie_lose(ours: np.ndarray, theirs: np.ndarray, *, margin: float = 0.0) -> dict[str, Estimate]:
    """Compare two methods' picks under a judge, prompt by prompt.

    Args:
        ours, theirs: the judge's score of each method's pick. Shape of both: (prompts,), or (prompts, picks) where a
            prompt has several.
        margin: scores nearer to each other than this tie.

    Returns:
        shares `win`, `tie`, `lose` with 95 % intervals over prompts; they add up to 1.

    Raises:
        ValueError: a score that is not finite.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    if not np.isfinite(difference).all():
        raise ValueError("a judge's score is not finite; leave the prompt out for both methods")
    outcome = np.where(np.abs(difference) <= margin, 0, np.sign(difference))
    hits = np.column_stack([(outcome == sign).reshape(len(outcome), -1).mean(1) for sign in (1, 0, -1)])
    return dict(zip(("win", "tie", "lose"), means_over_prompts(hits), strict=True))


def load_outcomes(path: str | Path, *, ignore: Collection[str] = ()) -> tuple[pd.DataFrame, list[str]]:
    """Read responses with known outcomes: JSON lines {"prompt", "responses": [...], "correct": [...]}.

    `prompt` is a text or a list of messages that ends with the user's turn, a response a text, an outcome true or
    false (or 1 or 0). Texts are checked as `preferences.load_preferences` does. A prompt may have several rows; one
    that calls a response wrong which an earlier row calls right, or the other way round, is refused. What stands beside
    the prompt (`system`, `history`, `input`) belongs to it; other text that a reward model would not read costs the
    row, unless its key is about the row (`source`, `answer`, `solution`, ...) or in `ignore`.

    Args:
        path: a file with one of the endings of `rows.file_rows`.
        ignore: keys whose text may be left out.

    Returns:
        one row a response (`prompt` index, `index`, `conversation`, `response`, `correct`), and what was refused, one
        sentence a row with line, reason and remedy.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is as a whole not what its name says (UTF-16, say), or no usable row.
    """
    path = Path(path)
    name = path.name if path.is_absolute() else str(path)
    rows, refused, known, prompts = [], [], {}, 0
    for line, row in file_rows(path, name):
        try:
            labelled = read_labelled(row, ignore)
            _check_against(known, labelled)
        except BadRow as fault:
            refused.append(f"{name}:{line}: {fault}")
            continue
        known |= {answer: (line, right) for answer, right in labelled.answers()}
        for j, (response, right) in enumerate(zip(labelled.responses, labelled.correct, strict=True)):
            talk = [*labelled.prompt, {"role": "assistant", "content": response}]
            row = {"prompt": prompts, "index": j, "conversation": talk, "response": response, "correct": right}
            rows.append(row)
        prompts += 1
    if not rows:
        first = f": {refused[0]}" if refused else "; check that it is the right one and was written to its end"
        raise ValueError(f"{name} has no usable row{first}")
    return pd.DataFrame(rows), refused


def _check_against(known: dict[tuple[str, str], tuple[int, bool]], labelled: Labelled) -> None:
    for answer, right in labelled.answers():
        line, other = known.get(answer, (0, right))
        if other != right:
            said = f"line {line} calls the response {answer[1][:40]!r} {'right' if other else 'wrong'}"
            raise BadRow("contradicts an earlier row", f"{said}; correct one of them")


def outcome_accuracy(rows: pd.DataFrame, scores: Sequence[float]) -> pd.DataFrame:
    """How often the chosen response is right, chosen by a reward model and by what it has to beat.

    Args:
        rows: of `load_outcomes`.
        scores: of the reward model, one a row.

    Returns:
        index `mean` (any response), `majority` (the final answer that most responses give, tied answers evenly),
        `pick` (the highest score, ties evenly), `oracle` (right where any response is); columns `value`, `low`, `high`:
        a share of the prompts with its 95 % interval over prompts.

    Raises:
        ValueError: another number of scores than rows, or one that is not finite.
    """
    if len(scores) != len(rows):
        raise ValueError(f"{len(scores)} scores but {len(rows)} responses; each response needs one")
    by_prompt = []
    for _, group in rows.assign(score=np.asarray(scores, dtype=float)).groupby("prompt", sort=False):
        right = group["correct"].to_numpy(dtype=float)
        votes = np.array(final_answers(group["response"]), dtype=object)
        share = pd.Series(right, index=group.index).groupby(votes).agg(["size", "mean"])
        majority = share.loc[share["size"] == share["size"].max(), "mean"].mean()
        pick = pick_weights(group["score"].to_numpy(), len(group)) @ right
        by_prompt.append((right.mean(), majority, pick, right.max()))
    names = ["mean", "majority", "pick", "oracle"]
    return pd.DataFrame(means_over_prompts(np.array(by_prompt)), columns=["value", "low", "high"], index=names)
