"""The shapes that a row may have, each to pairs of one kind. A new public form is a function in one of the files here.

| file | rows that say |
|---|---|
| `sides` | which reply is chosen, which rejected: TRL, hh-rlhf, UltraFeedback, axolotl, ms-swift, orca, ... |
| `compared` | two replies and a verdict: SHP, PKU-SafeRLHF, HelpSteer, Chatbot Arena, AlpacaFarm, WebGPT, ... |
| `ranked` | several replies in an order: Nectar, UltraFeedback's completions, alpaca's lists |
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from icrm_lib.preferences.checks import CHECKS, Pair
from icrm_lib.preferences.forms import compared, ranked, sides
from icrm_lib.preferences.forms.columns import Row, texts
from icrm_lib.preferences.forms.formatted import END_MARKS, is_transcript, without_end_marks, without_prompt
from icrm_lib.preferences.forms.prompts import require
from icrm_lib.preferences.forms.ratings import LABEL_KEYS, RATING_KEYS, SPAN_KEYS, Tie, as_number, rating_margin
from icrm_lib.preferences.forms.sides import Sides
from icrm_lib.preferences.spans import read_spans
from icrm_lib.rows import BadRow, shown, type_name

__all__ = ["LABEL_KEYS", "RATING_KEYS", "SPAN_KEYS", "Reading", "Tie", "as_number", "read_row"]


class Reading(NamedTuple):
    """What a row was read as.

    Attributes:
        pairs: at least one.
        form: the public form's name; "" for prompt, chosen, rejected.
        remarks: what was done to it, in words that are the same for all rows.
        left_out: ignored columns that held text.
        carried: values of the columns that were asked for.
    """

    pairs: list[Pair]
    form: str
    remarks: list[str]
    left_out: list[str]
    carried: dict[str, float]


def read_row(values: Any, *, ignore: Collection[str] = (), carry: Collection[str] = ()) -> Reading:
    """Read a row, whatever its form.

    Args:
        values: the row, or the `BadRow` that it is.
        ignore: columns, and keys of messages, whose text may be left out.
        carry: columns of numbers that the caller keeps.

    Raises:
        BadRow: no form that is known, or a pair that does not hold what every pair must.
        Tie: neither reply is preferred.
    """
    if isinstance(values, BadRow):
        raise values
    if not isinstance(values, dict):
        raise BadRow("not a JSON object", f"found {type_name(values)}; write each row as {{...}}")
    row, remarks = Row(values, ignore), []
    form, found = _form_and_sides(row, remarks)
    carried = {key: as_number(require(row, key), key) for key in carry}
    source = values.get("source") if isinstance(values.get("source"), str) else None
    pairs, faults = [], []
    for one, margin in found:
        sides.refuse_formatted_sides(one)
        clean, before = _cleaned(one, remarks)
        pair = Pair(*clean, margin, source, *_marked(row, clean, before, len(found)))
        try:
            for check in CHECKS:
                check(pair)
            pairs.append(pair)
        except BadRow as bad:
            faults.append(bad)
    if not pairs:
        raise faults[0]
    remarks += [f"pairs left out of several in a row: {fault.reason}" for fault in faults]
    noted = row.check_rest(
        {text.strip() for pair in pairs for _, text in pair.texts()} | {t.strip() for t in _unpaired(found)}
    )
    remarks += [f"remarks about the replies in {shown(key)!r}, which are not read" for key in noted]
    if not form and len(pairs) > 1:
        form = "several replies on a side"
    return Reading(pairs, form, list(dict.fromkeys(remarks)), row.left_out(), carried)


def _form_and_sides(row: Row, remarks: list[str]) -> tuple[str, list[tuple[Sides, float | None]]]:
    """Return the name of a row's form, and its pairs with their margins."""
    if sides.is_swift(row):
        return _rated(row, "ms-swift (messages and the rejected reply)", sides.swift(row), remarks)
    keys = sides.keys_of(row)
    if keys is None:
        for is_form, name, read in compared.OTHERS:
            if is_form(row):
                found, margin = read(row)
                return name, [(one, margin) for one in found]
        if form := compared.form_of(row):
            found, margin = compared.compared(row, form)
            if compared.is_contrary(row, form, found[0]):
                remarks.append("the scores contradict the verdict (kept)")
            return form.name, [(one, margin) for one in found]
        if form := ranked.form_of(row):
            return form.name, ranked.ranked(row, form, remarks)
        if ranked.is_list_of_two(row):
            return _rated(row, "alpaca (output holds the better and the worse reply)", ranked.list_of_two(row), remarks)
        _refuse_unpaired(row)
        keys = sides.SIDE_KEYS[0]
    form = "" if keys == sides.SIDE_KEYS[0] else f"{keys[0]} and {keys[1]}"
    found = sides.two_sides(row, keys)
    if any(isinstance(row.values.get(key), str) and is_transcript(row.values[key]) for key in ("prompt", *keys)):
        form = "transcripts (Human: ... Assistant: ..., as hh-rlhf)"
        found = [Sides(one.prompt, one.chosen.strip(), one.rejected.strip()) for one in found]
    return _rated(row, form, found, remarks)


def _rated(row: Row, form: str, found: list[Sides], remarks: list[str]) -> tuple[str, list[tuple[Sides, float | None]]]:
    margin, unreadable = rating_margin(row)
    if unreadable:
        remarks.append("a rating that is no finite number (kept without it)")
    return form, [(one, margin) for one in found]


def _cleaned(one: Sides, remarks: list[str]) -> tuple[Sides, tuple[int, int]]:
    """Take off what generation or a tool left on both replies; also return how much of it stood in front of each."""
    chosen, rejected, mark = without_end_marks(one.chosen, one.rejected)
    if mark:
        remarks.append(f"{mark} taken off the end of both replies")
    elif any(text.rstrip().endswith(END_MARKS) for text in (chosen, rejected)):
        remarks.append("one reply ends with a model's end mark (kept)")
    whole = chosen, rejected
    if one.prompt and one.prompt[-1]["role"] == "user":
        chosen, rejected, repeated = without_prompt(one.prompt[-1]["content"], chosen, rejected)
        if repeated:
            remarks.append("the prompt taken off the beginning of both replies")
    before = len(whole[0]) - len(chosen), len(whole[1]) - len(rejected)
    return Sides(one.prompt, chosen, rejected), before


def _marked(row: Row, one: Sides, before: tuple[int, int], pairs: int) -> list[list[dict[str, Any]] | None]:
    """Return the spans of the chosen and of the rejected reply, None where the row has none."""
    given = {key: row.get(key) for key in SPAN_KEYS if row.has(key)}
    if given and pairs > 1:
        raise BadRow(
            f"{next(iter(given))!r} in a row of several pairs",
            f"it has {pairs}, and spans belong to one text; write a row for each pair",
        )
    texts_of = zip(SPAN_KEYS, (one.chosen, one.rejected), before, strict=True)
    return [read_spans(given.get(key), text, key, before=front) for key, text, front in texts_of]


def _unpaired(found: list[tuple[Sides, float | None]]) -> Iterator[str]:
    """Yield the texts as they were before they were cleaned."""
    for one, _ in found:
        yield from texts([one.chosen, one.rejected])


def _refuse_unpaired(row: Row) -> None:
    """Raise `BadRow` for rows of one reply each, and for two replies without a verdict."""
    if row.has("completion") and "label" in row.values:
        raise BadRow(
            "unpaired rows, as for KTO",
            "each has one completion and a label; group the rows by prompt and write a row {prompt, chosen, rejected} "
            "for each completion with label true and one with label false (prompts with one kind alone give none)",
        )
    if row.has("prompt", "response") and row.first(("helpfulness", "score", "rating", "label")):
        raise BadRow(
            "one rated reply a row, as in HelpSteer 2",
            "group the rows by prompt and write a row {prompt, chosen, rejected, chosen_rating, rejected_rating} for "
            "each two replies whose ratings differ",
        )
    for keys in compared.REPLIES:
        if row.has(*keys):
            raise BadRow(
                "two replies without a verdict",
                f"{keys[0]} and {keys[1]} are there; name the better one 'chosen' and the other 'rejected', or add "
                "'winner'",
            )
