"""Rows with several replies in an order: every pair of two that differ in it."""

import itertools
from typing import Any, NamedTuple

from icrm_lib.preferences.forms.columns import Row, check_unread
from icrm_lib.preferences.forms.messages import messages
from icrm_lib.preferences.forms.prompts import prompt_of
from icrm_lib.preferences.forms.ratings import Tie, as_number
from icrm_lib.preferences.forms.sides import Sides
from icrm_lib.rows import BadRow, type_name

_TEXTS = ("answer", "text", "response", "content", "output", "completion")
_RANKS = ("rank", "ranking")  # 1 is the best
_SCORES = ("overall_score", "fine-grained_score", "pm_score", "score", "rating", "reward")  # the highest is the best


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


def ranked(row: Row, form: Ranked, remarks: list[str]) -> list[tuple[Sides, float | None]]:
    """Read ranked replies: all pairs of which one is better, best first, with the difference of their scores.

    Where a reply has two scores (UltraFeedback: of both, one is known to be off), a pair counts if they agree.

    Args:
        row: of the form.
        form: of `form_of`.
        remarks: what was left out is added.

    Raises:
        Tie: all are as good.
        BadRow: a reply without text, or less than two with a rank or score.
    """
    prompt = prompt_of(row)
    replies, faults = [], []
    for item in row.get(form.column):
        try:
            replies.append(_reply(item, form, row))
        except BadRow as bad:
            if "would be lost" in bad.reason:
                raise
            faults.append(bad)
    if len(replies) < 2 and faults:
        raise faults[0]
    remarks += [f"a reply left out of several: {fault.reason}" for fault in faults]
    pairs = []
    for one, two in itertools.permutations(replies, 2):
        differences = [one.values[key] - two.values[key] for key in one.values.keys() & two.values.keys()]
        if differences and min(differences) < 0 < max(differences):
            remarks.append("two scores of a pair of replies contradict each other (the pair is left out)")
        elif differences and max(differences) > 0:
            scored = next((key for key in _SCORES if key in one.values and key in two.values), None)
            margin = one.values[scored] - two.values[scored] if scored else None
            pairs.append((Sides(prompt, one.text, two.text), margin or None))
    if not pairs:
        raise Tie
    return pairs


class Reply(NamedTuple):
    """A reply, and what is said of it: by key, higher is better."""

    text: str
    values: dict[str, float]


def _reply(item: dict[str, Any], form: Ranked, row: Row) -> Reply:
    key = next((key for key in _TEXTS if item.get(key) is not None), None)
    if key is None or not isinstance(item[key], str):
        raise BadRow(
            f"a reply without text in {form.column!r}", f"its keys are {', '.join(item)[:60]}; name it 'answer'"
        )
    (message,) = messages([{"role": "assistant", "content": item[key]}], form.column, "assistant", row.ignore)
    values = {}
    for name in (*_RANKS, *_SCORES):
        if item.get(name) is not None:
            values[name] = as_number(item[name], name) * (-1 if name in _RANKS else 1)
    if not values:
        raise BadRow(
            f"a reply without rank or score in {form.column!r}", f"its keys are {', '.join(item)[:60]}; add 'rank'"
        )
    read = {key, *_RANKS, *_SCORES, *row.ignore}
    check_unread({name: value for name, value in item.items() if name not in read}, where=f" of {form.column!r}")
    return Reply(message["content"], values)


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
