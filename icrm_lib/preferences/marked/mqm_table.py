"""A table of MQM: a row an error, with `<v>` and `</v>` around its place in the translation, or no error."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from icrm_lib.preferences.report import Refusal
from icrm_lib.rows import BadRow

COLUMNS = ("system", "doc", "seg_id", "rater", "source", "target", "category", "severity")
MARKS = ("<v>", "</v>")
NO_ERROR = ("no-error", "no error")
# The first that fits; from the README of google/wmt-mqm-human-evaluation.
NON_TRANSLATION, MAJOR, MINOR, PUNCTUATION, NEUTRAL = 25.0, 5.0, 1.0, 0.1, 0.0
Key = tuple[str, str, str, str]  # document, segment, system, rater


@dataclass
class Translation:
    """A translation of a segment by a system, as one rater judged it.

    Attributes:
        line: of its first row.
        text, source: without marks.
        spans: places of its errors, labelled by category.
        score: sum of the errors' weights, at least 0.
        unplaced: number of errors without a place.
        whole: whether none of its rows was refused; else the score lacks one.
    """

    line: int
    text: str
    source: str
    spans: list[dict[str, Any]] = field(default_factory=list)
    score: float = 0.0
    unplaced: int = 0
    whole: bool = True


def read_table(path: Path, name: str) -> tuple[dict[Key, Translation], list[Refusal]]:
    """Return the translations in the order of their first rows, and the rows that were refused.

    Args:
        path: of the table.
        name: of the source, for the refusals.

    Raises:
        ValueError: a column is missing, or the file is not UTF-8.
    """
    outputs: dict[Key, Translation] = {}
    refusals = []
    for line, row in _rows(path):
        key = tuple(row[name] or "" for name in ("doc", "seg_id", "system", "rater"))
        text, source = (_without_marks(row[name] or "") for name in ("target", "source"))
        output = outputs.setdefault(key, Translation(line, text, source))
        try:
            _add(output, row, text)
        except BadRow as bad:
            output.whole = False
            refusals.append(Refusal(name, line, bad.reason, bad.remedy))
    return outputs, refusals


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{path.name} has no column {missing[0]!r}, so it is no table of MQM; it needs {', '.join(COLUMNS)}, "
                "with tabs between them"
            )
        for row in reader:
            yield reader.line_num, row


def _without_marks(text: str) -> str:
    for mark in MARKS:
        text = text.replace(mark, "")
    return text


def _add(output: Translation, row: dict[str, str | None], text: str) -> None:
    """Add the error of a row to its translation; raises `BadRow`."""
    if any(row[name] is None for name in COLUMNS):
        raise BadRow("too few columns", f"the row ends early; it needs {', '.join(COLUMNS)}")
    if text != output.text:
        raise BadRow(
            "another text than the translation's first row",
            f"they begin {output.text[:20]!r} and {text[:20]!r}; the marks must be the only difference",
        )
    place = _place(row["target"])
    severity = row["severity"].strip().lower()
    if severity in NO_ERROR:
        if place:
            raise BadRow("a marked place without an error", "severity says that there is none; take off the marks")
        return
    output.score = round(output.score + _weight(row["category"].strip(), severity), 6)
    if place:
        output.spans.append({"start": place[0], "end": place[1], "label": row["category"].strip()})
    else:
        output.unplaced += 1


def _place(target: str) -> tuple[int, int] | None:
    """Return start and end of the marked place in the text without marks; raises `BadRow`."""
    counts = [target.count(mark) for mark in MARKS]
    start, end = map(target.find, MARKS)
    if counts == [0, 0]:
        return None
    if counts != [1, 1] or end <= start + len(MARKS[0]):
        raise BadRow(
            "no whole marked place",
            f"found {counts[0]} {MARKS[0]} and {counts[1]} {MARKS[1]}; one of each, with text between, marks an error",
        )
    return start, end - len(MARKS[0])


def _weight(category: str, severity: str) -> float:
    if category.lower().startswith("non-translation"):
        return NON_TRANSLATION
    if severity == "minor" and category.lower() == "fluency/punctuation":
        return PUNCTUATION
    weights = {"major": MAJOR, "minor": MINOR, "neutral": NEUTRAL}
    if severity not in weights:
        raise BadRow("unknown severity", f"found {severity[:20]!r}; give {', '.join(weights)} or {NO_ERROR[0]}")
    return weights[severity]
