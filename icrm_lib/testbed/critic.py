"""A critic of responses in the generated language: it knows the truth, and errs at rates that are set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from icrm_lib.testbed.grammar import NAME, PHRASE, PLACE
from icrm_lib.testbed.language import Language
from icrm_lib.testbed.truth import known_truth

Span = Literal["word", "clause"]


@dataclass(frozen=True)
class Critic:
    """How a critic errs, and what it marks.

    Attributes:
        miss: probability that a good or bad clause is left unmarked, in [0, 1].
        false_alarm: probability that a neutral clause is marked, good or bad at even odds, in [0, 1].
        span: what a mark covers: the "word" that reveals a clause's quality, or the whole "clause" (its phrase, name
            and place, without the connector before it).
        seed: with a response's token ids decides its errors, whatever the other responses are.

    Raises:
        ValueError: a rate outside its range, or an unknown span.
    """

    miss: float = 0.0
    false_alarm: float = 0.0
    span: Span = "word"
    seed: int = 0

    def __post_init__(self):
        for name in ("miss", "false_alarm"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it is a probability, so give one in [0, 1]")
        if self.span not in get_args(Span):
            raise ValueError(f"span is {self.span!r}; give {' or '.join(map(repr, get_args(Span)))}")

    def labels(self, language: Language, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[np.ndarray]:
        """Mark the tokens of responses.

        A higher rate adds errors to those of a lower one with the same seed, and moves none.

        Args:
            language: the language of the responses.
            rows: token ids of each conversation, prompt and response. N lists of integers.
            starts: index of the first response token in each row. Length N.

        Returns:
            of each response int8, shape (T_i,), T_i = len(rows[i]) - starts[i]: 1 good, -1 bad, 0 unmarked.

        Raises:
            ValueError: as of `known_truth`.
        """
        truth = known_truth(language, rows, starts)
        return [
            self._marked(language, list(map(int, ids)), known.quality) for ids, known in zip(rows, truth, strict=True)
        ]

    def _marked(self, language: Language, ids: list[int], quality: np.ndarray) -> np.ndarray:
        revealing = np.flatnonzero(~np.isnan(quality))
        judged = self._judged(ids, quality[revealing].astype(np.int8))
        spans = _clauses(language, ids) if self.span == "clause" else _words(language, ids[-len(quality) :])
        labels = np.zeros(len(quality), dtype=np.int8)
        for place, mark in zip(revealing, judged, strict=True):
            labels[spans == spans[place]] = mark
        return labels

    def _judged(self, ids: list[int], qualities: np.ndarray) -> np.ndarray:
        """Return -1, 0 or 1 for each clause. All is drawn whether used or not, so that a rate moves nothing else."""
        rng = np.random.default_rng([self.seed, *ids])
        luck, signs = rng.random(len(qualities)), rng.choice(np.array([-1, 1], dtype=np.int8), len(qualities))
        marked = np.where(luck < self.miss, 0, qualities)
        return np.where(qualities == 0, np.where(luck < self.false_alarm, signs, 0), marked)


def _words(language: Language, response: list[int]) -> np.ndarray:
    """Number the words of a response; the pieces of one share their number. Shape: (T,)."""
    pieces = language.tokenizer.convert_ids_to_tokens(response)
    return np.cumsum([not piece.startswith("##") for piece in pieces])


def _clauses(language: Language, ids: list[int]) -> np.ndarray:
    """Number the clauses of a response from 1; 0 at the tokens of none. Shape: (T,)."""
    walk = language.walk(ids)[1]
    slots = np.array(walk.grammar.slots)[walk.contexts[1:]]
    number = np.cumsum(walk.opens_slot() & (slots == PHRASE))
    return np.where(np.isin(slots, (PHRASE, NAME, PLACE)), number, 0)
