"""What is known of every token of a response in the generated language."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from icrm_lib.testbed.language import Language

GRID = 2.0**-40  # of the truth. Binary: many values are dyadic, and would lie on the edges of a decimal grid


class TokenTruth(NamedTuple):
    """What is known of each token of one response. All of shape (T,), float64.

    Attributes:
        values: P(top score | prefix) after the token, in [0, 1]; 0 or 1 at the closing token.
        clause_scores: gold score so far, a clause counting from its quality token on.
        quality: -1, 0 or 1 at the tokens that reveal a clause's quality, nan at all others.
        logprobs: log-probability of the token given those before it, at most 0.
        scores: E[gold score | prefix] after the token; the gold score at the closing token.
    """

    values: np.ndarray
    clause_scores: np.ndarray
    quality: np.ndarray
    logprobs: np.ndarray
    scores: np.ndarray


def known_truth(language: Language, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> list[TokenTruth]:
    """Look up the truth at every response token.

    Values and log-probabilities are rounded to multiples of 2^-40, about 1e-12. Tokens that change nothing (a name, a
    place) move the computed value by some 1e-17, which ranks would take for a change.

    Args:
        language: the language of the responses.
        rows: token ids of each conversation, prompt and response. N lists of integers.
        starts: index of the first response token in each row. Length N.

    Returns:
        the truth of each response, T_i = len(rows[i]) - starts[i] tokens.

    Raises:
        ValueError: no response, another number of starts than of rows, a start that is not the first token of the
            response, or a row that is not of this language.
    """
    if not len(rows) or len(rows) != len(starts):
        raise ValueError(f"need one start a response, at least one: got {len(rows)} rows and {len(starts)} starts")
    return [_response_truth(language, row, *response) for row, response in enumerate(zip(rows, starts, strict=True))]


def _response_truth(language: Language, row: int, ids: Sequence[int], start: int) -> TokenTruth:
    try:
        first, walk = language.walk(ids)
    except ValueError as error:
        raise ValueError(f"response {row}: {error}") from error
    if start != first:
        raise ValueError(
            f"response {row} of {len(ids)} tokens cannot start at {start}: the token before it must be "
            "<assistant>; give the length of the prompt with its generation prompt"
        )
    revealed, qualities = walk.revealed()
    return TokenTruth(
        values=_on_grid(walk.values()[1:]),
        clause_scores=np.cumsum(np.where(revealed, qualities, 0), dtype=np.float64),
        quality=np.where(revealed, qualities, np.nan),
        logprobs=_on_grid(np.log(walk.probs())),
        scores=_on_grid(walk.scores()[1:]),
    )


def _on_grid(numbers: np.ndarray) -> np.ndarray:
    return np.round(numbers / GRID) * GRID
