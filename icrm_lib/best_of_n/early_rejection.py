"""Early rejection: stop the candidates that fall behind, by a schedule that is chosen on known ones."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np


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
        full_tokens: tokens that all candidates together would have needed; nan where they were not generated.
    """

    pick: int
    tokens: int
    full_tokens: float


def early_rejection(rewards: Sequence[np.ndarray], schedule: Schedule) -> Rejection:
    """Replay a schedule on candidates whose token rewards are known to the end.

    Args:
        rewards: per candidate the reward after each of its tokens, the closing token last. Each of shape (T_i,).
        schedule: when to compare, and how many to keep.

    Returns:
        the pick and the tokens used; with no cuts, best-of-N and all tokens.

    Raises:
        ValueError: no candidate, one without tokens, or a reward that is not finite.
    """
    if not len(rewards) or not all(len(r) and np.isfinite(r).all() for r in rewards):
        raise ValueError("early rejection needs at least one candidate, each with finite rewards after its tokens")
    lengths = np.array([len(r) for r in rewards])
    alive, used = np.arange(len(rewards)), np.zeros(len(rewards), dtype=int)
    for tokens, keep in schedule.cuts:
        used[alive] = np.minimum(lengths[alive], tokens)
        now = np.array([rewards[i][used[i] - 1] for i in alive])
        alive = best_so_far(alive, now, keep)
    used[alive] = lengths[alive]
    final = np.array([rewards[i][-1] for i in alive])
    return Rejection(int(alive[final.argmax()]), int(used.sum()), int(lengths.sum()))


def best_so_far(alive: np.ndarray, rewards: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` with the highest rewards, in their old order; of equal ones the first."""
    return alive[np.sort(np.argsort(-rewards, kind="stable")[:keep])]


def schedules(tokens: Iterable[int], keeps: Iterable[int], *, most_cuts: int = 3) -> list[Schedule]:
    """Return every schedule with one to `most_cuts` cuts at some of the given lengths."""
    tokens, keeps = sorted(set(tokens)), sorted(set(keeps), reverse=True)
    return [
        Schedule(tuple(zip(at, kept, strict=True)))
        for cuts in range(1, most_cuts + 1)
        for at in combinations(tokens, cuts)
        for kept in combinations(keeps, cuts)
    ]


class Tried(NamedTuple):
    """A schedule on known candidates: the mean value of its picks, and its share of the tokens of all candidates."""

    schedule: Schedule
    value: float
    share: float


def try_schedules(
    rewards: Sequence[Sequence[np.ndarray]], values: Sequence[np.ndarray], options: Iterable[Schedule]
) -> list[Tried]:
    """Replay schedules on the candidates of several prompts.

    Args:
        rewards: per prompt, per candidate, the reward after each token.
        values: per prompt, what each candidate is worth, e.g. its gold score. Without a judge, the reward of the whole
            response itself.
        options: schedules, e.g. of `schedules`.
    """
    found = []
    for option in options:
        runs = [early_rejection(candidates, option) for candidates in rewards]
        share = sum(run.tokens for run in runs) / sum(run.full_tokens for run in runs)
        value = np.mean([value[run.pick] for value, run in zip(values, runs, strict=True)])
        found.append(Tried(option, float(value), share))
    return found


def choose_schedule(tried: Sequence[Tried], budget: float) -> Tried:
    """Return the most valuable schedule that stays within a budget; of equally valuable ones the cheapest.

    Args:
        tried: of `try_schedules`, on validation prompts.
        budget: largest share of the tokens of all candidates, in (0, 1].

    Raises:
        ValueError: none stays within the budget.
    """
    within = [one for one in tried if one.share <= budget]
    if not within:
        raise ValueError(f"none of {len(tried)} schedules uses at most {budget:.0%} of the tokens; cut earlier or more")
    return max(within, key=lambda one: (one.value, -one.share))
