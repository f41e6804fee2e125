"""Best-of-N: what the pick of a reward model is worth, and how early the losers can be stopped."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import gammaln

from icrm_lib.pair_accuracy import Estimate

# Exact expectations --------------------------------------------------------------------------------------------------


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


def best_of_n_curve(
    scores: np.ndarray,
    values: dict[str, np.ndarray],
    ns: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Expected values of the pick over N, mean over prompts, with intervals that resample prompts.

    Args:
        scores: of every candidate by the reward model that picks. Shape: (prompts, candidates).
        values: name -> what is measured at the pick, e.g. {"gold": ..., "proxy": scores}. Shape of each: as `scores`.
        ns: numbers of candidates, each at most the number there is.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        one row a (n, measure): `n`, `kl`, `measure`, `value`, `low`, `high`.
    """
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), resamples) / len(scores)
    rows = []
    for n in ns:
        weights = np.array([pick_weights(row, n) for row in scores])
        for measure, value in values.items():
            by_prompt = (weights * value).sum(1)
            low, high = np.quantile(draws @ by_prompt, (0.025, 0.975))
            rows.append(
                {"n": n, "kl": float(best_of_n_kl(n)), "measure": measure}
                | {"value": float(by_prompt.mean()), "low": float(low), "high": float(high)}
            )
    return pd.DataFrame(rows)


def win_tie_lose(ours: np.ndarray, theirs: np.ndarray, *, margin: float = 0.0) -> dict[str, Estimate]:
    """Compare two methods' picks under a judge, prompt by prompt.

    Args:
        ours, theirs: the judge's score of each method's pick. Shape of both: (prompts,).
        margin: scores nearer to each other than this tie.

    Returns:
        shares `win`, `tie`, `lose` with 95 % intervals over prompts; they add up to 1.
    """
    difference = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    outcome = np.where(np.abs(difference) <= margin, 0, np.sign(difference))
    draws = np.random.default_rng(0).integers(len(outcome), size=(2000, len(outcome)))
    result = {}
    for name, sign in (("win", 1), ("tie", 0), ("lose", -1)):
        hit = outcome == sign
        low, high = np.quantile(hit[draws].mean(1), (0.025, 0.975))
        result[name] = Estimate(float(hit.mean()), float(low), float(high))
    return result


# Early rejection -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """When candidates are compared, and how many go on.

    Attributes:
        cuts: (tokens, keep) pairs: once every candidate has that many tokens (or has ended), the `keep` with the
            highest reward so far go on. Tokens rise, keeps fall.
    """

    cuts: tuple[tuple[int, int], ...]

    def __post_init__(self):
        tokens, keeps = [t for t, _ in self.cuts], [k for _, k in self.cuts]
        rising = all(a < b for a, b in zip(tokens, tokens[1:], strict=False))
        falling = all(a > b for a, b in zip(keeps, keeps[1:], strict=False))
        if not (rising and falling) or (tokens and (tokens[0] < 1 or keeps[-1] < 1)):
            raise ValueError(
                f"cuts {self.cuts}: tokens must rise from 1, keeps fall to 1 or more; e.g. ((15, 24), (25, 8))"
            )


class Rejection(NamedTuple):
    """What early rejection did with the candidates of one prompt.

    Attributes:
        pick: index of the candidate that is chosen in the end.
        tokens: tokens generated, those of stopped candidates included.
        full_tokens: tokens that all candidates together would have needed.
    """

    pick: int
    tokens: int
    full_tokens: int


def early_rejection(rewards: Sequence[np.ndarray], schedule: Schedule) -> Rejection:
    """Replay a schedule on candidates whose token rewards are known to the end.

    Args:
        rewards: per candidate the reward after each of its tokens, the closing token last. Each of shape (T_i,).
        schedule: when to compare, and how many to keep.

    Returns:
        the pick and the tokens used; with no cuts, best-of-N and all tokens.
    """
    lengths = np.array([len(r) for r in rewards])
    alive, used = np.arange(len(rewards)), np.zeros(len(rewards), dtype=int)
    for tokens, keep in schedule.cuts:
        used[alive] = np.minimum(lengths[alive], tokens)
        now = np.array([rewards[i][used[i] - 1] for i in alive])
        alive = alive[np.sort(np.argsort(-now, kind="stable")[:keep])]
    used[alive] = lengths[alive]
    final = np.array([rewards[i][-1] for i in alive])
    return Rejection(int(alive[final.argmax()]), int(used.sum()), int(lengths.sum()))


# Labelled outcomes ---------------------------------------------------------------------------------------------------


def load_outcomes(path: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Read responses with known outcomes: JSON lines {"prompt", "responses": [...], "correct": [...]}.

    Returns:
        one row a response (`prompt` index, `index`, `conversation`, `response`, `correct`), and what was refused, one
        sentence a row with line, reason and remedy.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no usable row.
    """
    rows, refused = [], []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            prompt, responses, correct = row["prompt"], row["responses"], row["correct"]
            if not isinstance(prompt, str) or not responses or len(responses) != len(correct):
                raise ValueError("needs a text prompt and as many responses, at least one, as outcomes")
            if not all(isinstance(r, str) and r.strip() for r in responses):
                raise ValueError("a response is empty or no text")
            if not all(isinstance(c, bool) or c in (0, 1) for c in correct):
                raise ValueError("an outcome is neither true nor false")
        except (ValueError, KeyError, TypeError) as error:
            reason = f"missing key {error}" if isinstance(error, KeyError) else error
            refused.append(f"{path}:{number}: {reason}; correct or remove the row")
            continue
        index = len({r["prompt"] for r in rows})
        for j, (response, outcome) in enumerate(zip(responses, correct, strict=True)):
            talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            rows.append(
                {"prompt": index, "index": j, "conversation": talk, "response": response, "correct": bool(outcome)}
            )
    if not rows:
        raise ValueError(f"{path} has no usable row" + (f": {refused[0]}" if refused else ""))
    return pd.DataFrame(rows), refused
