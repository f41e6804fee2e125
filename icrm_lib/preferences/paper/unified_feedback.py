"""Unified-Feedback, every `stride`-th row of it, alone or behind Skywork's pairs."""

import math
from pathlib import Path
from typing import Any

from icrm_lib.preferences.paper.sources import SKYWORK, UNIFIED_FEEDBACK, Rows
from icrm_lib.preferences.paper.splits import Splits
from icrm_lib.preferences.report import Report
from icrm_lib.profiles import DataSettings
from icrm_lib.rows import BadRow

SUMMARIZE = "Generate one-sentence summary for the following post: "
HELD_OUT = 10  # of Skywork's pairs every so many-th is for the test


def make_unified(data: DataSettings, folder: Path) -> list[Report]:
    """Write the three splits of "unified-feedback"; returns their reports."""
    splits, notes = Splits("unified-feedback", data, folder), []
    splits.write("train", _unified_rows(splits.read(UNIFIED_FEEDBACK, "train"), data.stride, 0, notes), notes)
    _write_val(splits, "test")
    _write_val(splits, "validation")
    return splits.in_order()


def make_skywork(data: DataSettings, folder: Path) -> list[Report]:
    """Write the three splits of "skywork+unified-feedback"; returns their reports."""
    splits, notes = Splits("skywork+unified-feedback", data, folder), []
    rest = _tenth(splits.read(SKYWORK, "train"), False, notes)
    unified = _unified_rows(splits.read(UNIFIED_FEEDBACK, "train"), data.stride, 0, notes)
    splits.write("train", _one_after_the_other(rest, unified, notes), notes)
    held_out: list[str] = []
    splits.write("test", _tenth(splits.read(SKYWORK, "train"), True, held_out), held_out)
    _write_val(splits, "validation")
    return splits.in_order()


def _write_val(splits: Splits, split: str) -> None:
    """Write test or validation rows from the split `val` of Unified-Feedback: the stride's rows, and those half-way.

    Stride 1 would leave nothing to validate on, so there the two splits take turns.
    """
    step, notes = max(splits.data.stride, 2), []
    offset = 0 if split == "test" else step // 2
    splits.write(split, _unified_rows(splits.read(UNIFIED_FEEDBACK, "val"), step, offset, notes), notes)


def _unified_rows(rows: Rows, step: int, offset: int, notes: list[str]) -> Rows:
    """Yield every `step`-th of the rows with different ratings, from number `offset` on, as preference rows."""
    place = equal = 0
    for line, row in rows:
        try:
            difference = _rating_difference(row)
        except BadRow as bad:
            yield line, bad
            continue
        if difference == 0:
            equal += 1
            continue
        if place % step == offset:
            yield line, _first_turn(row, difference)
        place += 1
    notes.append(
        f"{UNIFIED_FEEDBACK.name}: {equal} rows with equal ratings dropped; of the {place} others those at "
        f"{offset}, {offset + step}, {offset + 2 * step}, ... taken (counted from 0)"
    )


def _rating_difference(row: Any) -> float:
    if isinstance(row, BadRow):
        raise row
    ratings = [row.get(f"conv_{side}_rating") if isinstance(row, dict) else None for side in "AB"]
    if not all(isinstance(rating, int | float) and math.isfinite(rating) for rating in ratings):
        raise BadRow("no two ratings", f"found {ratings}; conv_A_rating and conv_B_rating must be numbers")
    return float(ratings[0]) - float(ratings[1])


def _first_turn(row: dict, difference: float) -> dict[str, Any]:
    """Return a row of Unified-Feedback as a preference row: the first question with its two answers."""
    talks = [row.get(f"conv_{side}") for side in "AB"]
    talks = [talk[:2] if isinstance(talk, list) else talk for talk in talks]
    source = row.get("source")
    if isinstance(source, str) and "summarize" in source:
        talks = [_asked_to_summarize(talk) for talk in talks]
    chosen, rejected = talks if difference > 0 else talks[::-1]
    return {"chosen": chosen, "rejected": rejected, "margin": abs(difference), "source": source}


def _asked_to_summarize(talk: Any) -> Any:
    match talk:
        case [{"role": role, "content": str(post)}, *answer]:
            return [{"role": role, "content": SUMMARIZE + post.strip()}, *answer]
    return talk  # refused later, with the reason


def _tenth(rows: Rows, held_out: bool, notes: list[str]) -> Rows:
    """Yield the held-out pairs of Skywork (0, 10, 20, ... counted from 0), or all others."""
    count = 0
    for place, (line, row) in enumerate(rows):
        if (place % HELD_OUT == 0) == held_out:
            count += 1
            yield line, row
    notes.append(f"{SKYWORK.name}: {count} pairs {'held out' if held_out else 'not held out'}, one in {HELD_OUT} is")


def _one_after_the_other(first: Rows, second: Rows, notes: list[str]) -> Rows:
    # A row is known by its line, so the second's go on where the first's end.
    last = 0
    for last, row in first:
        yield last, row
    yield from ((last + line, row) for line, row in second)
    notes.append(f"line {last + 1} and on: line 1 and on of {UNIFIED_FEEDBACK.name}")
