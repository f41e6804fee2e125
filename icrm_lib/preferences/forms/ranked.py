"""Rows with several replies in an order: every pair of two that differ in it."""

import itertools
from typing import Any, NamedTuple

from icrm_lib.preferences.forms.columns import Row
from icrm_lib.preferences.forms.messages import messages
from icrm_lib.preferences.forms.prompts import prompt_of
from icrm_lib.preferences.forms.ratings import Tie, as_number
from icrm_lib.preferences.forms.sides import Sides
from icrm_lib.rows import BadRow, type_name

_TEXTS = ("answer", "text", "response", "content", "output", "completion")
_RANKS = ("rank", "ranking")  # 1 is the best
_SCORES = ("overall_score", "pm_score", "score", "rating", "reward")  # the highest is the best


class Ranked(NamedTuple):
    """A form of ranked replies: its name, and the column that holds them."""

    name: str
    column: str


FORMS = (
    Ranked("Nectar, or answers with scores", "answers"),
    Ranked("UltraFeedback", "completions"),
    Ranked("responses with scores", "responses"),
)


def form_of(row: Row) -> Ranked | None:
    """Return the form of a row with ranked replies, None where it has none of them."""
    for form in FORMS:
        value = row.values.get(form.column)
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return form
    return None


def ranked(row: Row, form: Ranked) -> list[tuple[Sides, float | None]]:
    """Read ranked replies: all pairs of which one is better, best first, with the difference of their scores.

    Raises:
        Tie: all are as good.
        BadRow: a reply without text, rank or score.
    """
    prompt = prompt_of(row)
    replies = [_reply(item, form, row) for item in row.get(form.column)]
    pairs = []
    for (one, value, scored), (two, other, _) in itertools.permutations(replies, 2):
        if value > other:
            pairs.append((Sides(prompt, one, two), value - other if scored else None))
    if not pairs:
        raise Tie
    return pairs


def _reply(item: dict[str, Any], form: Ranked, row: Row) -> tuple[str, float, bool]:
    """Return the text of a reply, a number that is higher for a better one, and whether it is a score."""
    text = next((item[key] for key in _TEXTS if item.get(key) is not None), None)
    (message,) = messages(text, form.column, "assistant", row.ignore) if isinstance(text, str) else (None,)
    if message is None:
        raise BadRow(
            f"a reply without text in {form.column!r}", f"its keys are {', '.join(item)[:60]}; name it 'answer'"
        )
    for key in (*_RANKS, *_SCORES):
        if item.get(key) is not None:
            value = as_number(item[key], key)
            return message["content"], -value if key in _RANKS else value, key in _SCORES
    raise BadRow(
        f"a reply without rank or score in {form.column!r}", f"its keys are {', '.join(item)[:60]}; add 'rank'"
    )


def is_list_of_two(row: Row) -> bool:
    """alpaca and LLaMA-Factory: `output` holds the better reply and the worse one."""
    value = row.values.get("output")
    return isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value)


def list_of_two(row: Row) -> list[Sides]:
    """Read a row of alpaca's form; see `is_list_of_two`."""
    output = row.get("output")
    if len(output) != 2:
        raise BadRow(
            "more than two replies in 'output'",
            f"found {len(output)} {type_name('')}s; give the better, then the worse",
        )
    return [Sides(prompt_of(row), output[0], output[1])]
