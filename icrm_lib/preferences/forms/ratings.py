"""What a row says of how good its replies are: margins, ties."""

import itertools
import math
from decimal import Decimal
from typing import Any

from icrm_lib.preferences.forms.columns import Row
from icrm_lib.rows import BadRow, type_name

_WORDS = ("rating", "score", "reward")
# Both orders of the words, with both signs between them: chosen_rating (this kit), rating_chosen (capybara),
# chosen-rating (UltraFeedback, argilla), score_chosen, ...
RATING_KEYS = tuple(
    pair
    for word, sign in itertools.product(_WORDS, "_-")
    for pair in (
        (f"chosen{sign}{word}", f"rejected{sign}{word}"),
        (f"{word}{sign}chosen", f"{word}{sign}rejected"),
    )
)
RANK_KEYS = (("chosen_rank", "rejected_rank"), ("rank_chosen", "rank_rejected"))  # 1 is the best
LABEL_KEYS = ("chosen_label", "rejected_label")  # 1 where the response is right, 0 where it is wrong
SPAN_KEYS = ("chosen_spans", "rejected_spans")  # places that people marked, see `preferences.spans`
_VERDICT_KEYS = ("winner", "status", "preference", "label", "outcome", "result", "verdict")
_TIES = (
    "tie",
    "tied",
    "draw",
    "equal",
    "same",
    "both good",
    "both bad",
    "tie (bothbad)",
    "tie (both bad)",
    "no preference",
)


_GIVEN = [(("margin",), 1.0), *((keys, 1.0) for keys in RATING_KEYS), *((keys, -1.0) for keys in RANK_KEYS)]


class Tie(Exception):
    """A row that prefers neither reply."""


def rating_margin(row: Row) -> tuple[float | None, bool]:
    """Return by how much the chosen reply is rated higher, and whether the rating could not be read.

    None where the row does not say. What no loss reads costs no row, so an unreadable rating is none.

    Raises:
        Tie: both are rated the same, or the row says so in words.
    """
    for key in _VERDICT_KEYS:
        if isinstance(row.values.get(key), str) and is_tie(row.values[key]):
            raise Tie
    if row.values.get("is_tie") is True:
        raise Tie
    for keys, sign in _GIVEN:
        if keys[0] not in row.values:
            continue
        found = [row.get(key) for key in keys]
        if any(value is None or value == "" for value in found):
            continue
        try:
            numbers = [as_number(value, key) for value, key in zip(found, keys, strict=True)]
        except BadRow:
            return None, True
        margin = sign * (numbers[0] - numbers[1] if len(numbers) == 2 else numbers[0])
        if margin == 0:
            raise Tie
        return (margin, False) if abs(margin) <= MOST_MARGIN else (None, True)
    return None, False


MOST_MARGIN = 3.4e38  # float32's largest number: the loss is computed in it


def is_tie(verdict: str) -> bool:
    """Say whether a verdict in words prefers neither reply."""
    return verdict.strip().lower().replace("_", " ") in _TIES


def as_number(value: Any, key: str) -> float:
    """Return a finite number, or a text that is one, as a float; `key` is for the `BadRow` that anything else is."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise BadRow(f"wrong type in {key!r}", f"found str {value[:20]!r}; give a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):  # decimals come from Parquet
        raise BadRow(f"wrong type in {key!r}", f"found {type_name(value)}; give a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(f"{key!r} is not finite", f"found {str(value)[:20]}; give a finite number or leave the rating out")
    return number
