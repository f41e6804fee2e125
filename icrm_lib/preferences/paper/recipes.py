r"""The data of the paper's settings as recipes: from the published files to training, validation and test pairs.

- "unified-feedback": every `stride`-th row of Unified-Feedback, tested on its split `val`.
- "skywork+unified-feedback": Skywork's pairs without every tenth, and Unified-Feedback; tested on the tenth.
- "prm800k": solutions of PRM800K's problems, sampled here and labelled by their boxed answers.

Rows go through in small batches into Arrow files, so 800,000 pairs take no more memory than 8,000.
"""

import math
from pathlib import Path
from typing import Any

from datasets import Dataset

from icrm_lib import records
from icrm_lib.preferences.loading import open_preferences
from icrm_lib.preferences.paper.prm800k import Draw, make_prm800k
from icrm_lib.preferences.paper.sources import (
    RECIPES,
    SKYWORK,
    SPLITS,
    UNIFIED_FEEDBACK,
    Rows,
    Splits,
    published_files,
)
from icrm_lib.preferences.report import REPORTS, Report, read_reports, write_reports
from icrm_lib.profiles import DataSettings
from icrm_lib.rows import BadRow
from icrm_lib.runtime import nearest

SUMMARIZE = "Generate one-sentence summary for the following post: "
HELD_OUT = 10  # of Skywork's pairs every so many-th is for the test


def load_recipe(
    name: str, data: DataSettings, folder: str | Path, *, draw: Draw | None = None, seed: int = 0
) -> tuple[dict[str, Dataset], list[Report]]:
    """Make a recipe's pairs in a folder, or open what was made there before; no prompt is in two splits.

    Training rows are those of the paper, in their order. What would occur twice is left out of the test, then of the
    validation rows, and counted in a note.

    Args:
        name: one of `RECIPES`.
        data: `files` is a folder with the downloaded files (see `Source.how_to_get`), empty for the hub; `stride`
            takes every n-th row of Unified-Feedback.
        folder: for `<split>.arrow` and `reports.json`, which is written last; what is there is not made again.
        draw: for "prm800k", returns an even number of sampled solutions a problem; see `language_model.samples`.
        seed: for "prm800k", assigns problems to splits.

    Returns:
        split -> memory-mapped data set in the form of `preferences.load_preferences`, for "prm800k" with
        `preferences.LABEL_KEYS`; and the reports, one a split, for "prm800k" one of the problems before them.

    Raises:
        FileNotFoundError: `data.files` is no folder or lacks a file; the message says what to download.
        ConnectionError: the hub is out of reach; likewise.
        ValueError: unknown recipe, no `draw` for "prm800k", or a split without a single row.
    """
    folder = Path(folder)
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; {nearest(name, list(RECIPES))}")
    if not (folder / REPORTS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if name == "prm800k":
            reports = make_prm800k(data, folder, draw, seed)
        else:
            reports = (make_unified if name == "unified-feedback" else make_skywork)(data, folder)
        write_reports(folder, reports)
    reports = read_reports(folder)
    opened = zip(SPLITS, reports[-len(SPLITS) :], strict=True)
    return {split: open_preferences(folder / f"{split}.arrow", report.source) for split, report in opened}, reports


def recipe_key(name: str, data: DataSettings) -> dict[str, Any]:
    """Return what a recipe's rows depend on beside code, sampler and seed: the hub's names, or the files' checksums.

    Raises:
        FileNotFoundError: as `load_recipe`.
    """
    key: dict[str, Any] = {"recipe": name, "stride": data.stride}
    for source in RECIPES[name]:
        key[source.name] = source.config or source.url
        if data.files:
            alone = len(RECIPES[name]) == 1
            files = [file for split in source.splits for file in published_files(source, split, data.files, alone)]
            key[source.name] = [[path.name, records.file_checksum(path)] for path in files]
    return key


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
