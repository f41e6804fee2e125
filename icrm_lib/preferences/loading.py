"""Preference pairs from files, the hub or a data set: bad rows refused with line, reason and remedy.

A pair is a prompt (a conversation that ends with the user's turn) with two replies to it, the chosen and the
rejected one.
"""

import os
import re
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, Features, List, Value

from icrm_lib.preferences.forms import as_number, read_pair, require
from icrm_lib.preferences.prompts import identify_prompt
from icrm_lib.preferences.report import Refusal, Report
from icrm_lib.rows import ENDINGS, BadRow, ending, file_rows

BATCH = 1000  # rows that are Python objects at a time
_COLUMNS = {
    "prompt": List({"role": Value("string"), "content": Value("string")}),
    "chosen": Value("string"),
    "rejected": Value("string"),
    "line": Value("int64"),
    "prompt_id": Value("string"),
    "source": Value("string"),
    "margin": Value("float64"),
}
_ID_KEYS = ("id", "uid", "uuid")


def load_preferences(
    source: str | Path,
    *,
    split: str = "train",
    strict: bool = False,
    revision: str | None = None,
) -> tuple[Dataset, Report]:
    """Read preference pairs; every good row is kept, every bad one reported.

    A row has the keys `chosen` and `rejected`, each one

    - a text, the reply; `prompt` is then a text or a list of messages; or
    - a list of messages ({"role", "content"}): the reply turns, or the whole conversation. Both lists must be
      equal up to the final reply. `prompt` may be left out with whole conversations.

    Optional keys: `source` (text), and a margin: `margin`, or one of the pairs in `RATING_KEYS` (margin is
    then their difference). Other keys are ignored; that an `id` occurs twice is noted.

    Texts are kept as they are. Refused is what would become something else on the way or teaches nothing, among it
    texts without a visible character, replies that look the same, tool calls (they are no text), and ShareGPT's
    `conversations`, `from` and `value`, of which nobody has fixed how two replies are written (the remedy says what to
    rename).

    Args:
        source: a .jsonl, .json (array or lines; both may end in .gz) or .parquet file, or a hub id
            "owner/name".
        split: split of a hub data set, slices like "train[:1000]" included. A file has only "train".
        strict: raise at the first bad row instead of leaving it out.
        revision: branch, tag or commit of a hub data set.

    Returns:
        A data set with the columns `prompt` (list of messages), `chosen` and `rejected` (str), `line` (int,
        from 1), `prompt_id` (16 hex digits, equal for prompts that differ only in white space or Unicode
        composition), `source` if any row has one, `margin` (float64) if all rows have one; and the report.

    Raises:
        FileNotFoundError, IsADirectoryError: `source` is no file.
        ValueError: unknown file type, a file that is damaged or in another encoding as a whole (see
            `rows.file_rows`), not a single usable row (the message holds the report), or with `strict` a bad row.
        ConnectionError: the hub data set cannot be loaded.
    """
    return collect_preferences(*_open(source, split, revision), strict=strict)


def preference_rows(dataset: Dataset) -> tuple[Dataset, Report]:
    """Bring preference pairs that are already a data set into the form that `load_preferences` returns, with a report.

    Args:
        dataset: rows as `load_preferences` describes them; a column `line` of integers is kept.

    Raises:
        ValueError: not a single usable row.
    """
    dataset = dataset.with_format(None)  # numbers and lists, not tensors
    return collect_preferences(name_of(dataset), zip(lines_of(dataset), dataset, strict=True))


def _open(source: str | Path, split: str, revision: str | None) -> tuple[str, Iterable[tuple[int, Any]]]:
    """Return the source's name for reports, and its rows with their line numbers."""
    # os.path's answers are False where pathlib's raise: the home of somebody unknown, a name that is too long.
    path = Path(os.path.expanduser(source))
    found = os.path.exists(path)
    looks_like_hub = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)
    if looks_like_hub and not found and ending(path) not in ENDINGS:
        return source, enumerate(_read_hub(source, split, revision), 1)
    name = path.name if path.is_absolute() else str(source)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name!r} is a directory; name one .jsonl, .json or .parquet file in it")
    if not found:
        raise FileNotFoundError(
            f"there is no file {name[:200]!r}, and it is no hub id (owner/name) either; check the spelling, or "
            "give a path that is absolute or starts where the program runs (in the notebooks: the project's folder)"
        )
    if split != "train" or revision is not None:
        raise ValueError(
            f"split={split!r} and revision={revision!r} are for hub data sets, but {name!r} is a file; drop them"
        )
    return name, file_rows(path, name)


def _read_hub(source: str, split: str, revision: str | None) -> Dataset:
    try:
        return datasets.load_dataset(source, split=split, revision=revision)
    except Exception as error:  # the hub's clients raise errors of four libraries
        raise ConnectionError(
            f"cannot load split {split!r} of the hub data set {source!r} (revision {revision or 'default'}): "
            f"{error}. If a file was meant, there is none of this name; otherwise check the id, the split "
            "and the network, or download the file"
        ) from error


class Tally:
    """Counts over all rows, at 16 bytes a row, and 8 an id: a row is known by a hash of its texts."""

    def __init__(self) -> None:
        self.rated, self.contrary = 0, 0
        self.elsewhere: Counter[str] = Counter()
        self.rows, self.opposites, self.ids = array("Q"), array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self.rows)

    def see(self, row: Any) -> None:
        """Take note of the id of a row of the source, be it kept or not."""
        if isinstance(row, dict) and (own := [row[key] for key in _ID_KEYS if row.get(key) is not None]):
            self.ids.append(xxhash.xxh3_64_intdigest(repr(own).encode()))

    def add(self, row: dict[str, Any]) -> None:
        """Count a row of the data set."""
        self.rated += row["margin"] is not None
        self.contrary += row["margin"] is not None and row["margin"] < 0
        sides = row["chosen"], row["rejected"]
        for hashes, (one, other) in ((self.rows, sides), (self.opposites, sides[::-1])):
            hashes.append(xxhash.xxh3_64_intdigest(f"{row['prompt_id']}{len(one)} {one}{other}".encode()))

    def notes(self) -> list[str]:
        """Return what the report says about the rows that were kept."""
        rows, opposites = np.array(self.rows), np.array(self.opposites)
        known, first = np.unique(rows, return_index=True)
        # Where the opposite of a row would stand among the known ones; an earlier row has it or none has.
        place = np.searchsorted(known, opposites) % max(len(known), 1)
        opposed = (known[place] == opposites) & (first[place] < np.arange(len(rows)))
        notes = [f"{count} rows left out: their prompt is in {name}" for name, count in self.elsewhere.items()]
        if 0 < self.rated < len(rows):
            notes.append(f"no margin column: only {self.rated} of {len(rows)} rows are rated")
        counts = {
            "rate the chosen reply lower than the rejected one (kept)": self.contrary,
            "repeat an earlier row (kept)": len(rows) - len(known),
            "prefer the opposite of an earlier row (kept)": int(opposed.sum()),
            "have the id of an earlier row (ids decide nothing)": len(self.ids) - len(set(self.ids)),
        }
        return notes + [f"{count} rows {what}" for what, count in counts.items() if count]


def collect_preferences(
    name: str,
    rows: Iterable[tuple[int, Any]],
    *,
    strict: bool = False,
    file: str | Path | None = None,
    carry: Sequence[str] = (),
    without: Mapping[str, Container[str]] | None = None,
) -> tuple[Dataset, Report]:
    """Read preference pairs that come one by one; returns and raises as `load_preferences`.

    Args:
        name: of the source, for the report.
        rows: (line, row) as of `rows.file_rows`; at most `BATCH` of them are Python objects at a time.
        strict: raise at the first bad row instead of leaving it out.
        file: Arrow file to write the rows to, which the result then reads from disk as it is asked (an existing one
            is overwritten; no data set may still read it). In memory when None.
        carry: keys of further numbers that every row has, kept as float64 columns; for example `LABEL_KEYS`.
        without: name -> prompt ids; rows with such a prompt are left out, and a note says how many of each name.
    """
    report, tally = Report(name), Tally()
    schema = Features(_COLUMNS | {key: Value("float64") for key in carry}).arrow_schema
    good = _good_rows(rows, report, strict, carry, without or {}, tally)
    with pa.OSFile(str(file), "wb") if file else pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, schema) as writer:
            while batch := list(islice(good, BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
        buffer = None if file else sink.getvalue()
    report.kept = len(tally)
    report.notes += tally.notes()
    if not report.kept:
        raise ValueError(f"no usable preference pair:\n{report}")
    return open_preferences(file or buffer, name), report


def open_preferences(table: str | Path | pa.Buffer, name: str) -> Dataset:
    """Return the data set that was written to an Arrow file (memory-mapped) or buffer; later reports call it `name`."""
    dataset = Dataset.from_buffer(table) if isinstance(table, pa.Buffer) else Dataset.from_file(str(table))
    # Columns are fixed before the first row is known. A margin of 0 in place of a missing one would silently change
    # the loss of those rows, so some missing ones cost the column.
    nulls = {key: dataset.data.column(key).null_count for key in ("source", "margin")}
    unused = [key for key, least in (("source", len(dataset)), ("margin", 1)) if nulls[key] >= least]
    dataset = dataset.remove_columns(unused)
    dataset.info.description = name
    return dataset


def _good_rows(
    rows: Iterable[tuple[int, Any]],
    report: Report,
    strict: bool,
    carry: Sequence[str],
    without: Mapping[str, Container[str]],
    tally: Tally,
) -> Iterator[dict[str, Any]]:
    """Yield a row of the data set for each row that can be used; the others go into report and tally."""
    for line, row in rows:
        tally.see(row)
        try:
            pair = read_pair(row)
            carried = {key: as_number(require(row, key), key) for key in carry}
        except BadRow as bad:
            refusal = Refusal(report.source, line, bad.reason, bad.remedy)
            if strict:
                raise ValueError(str(refusal)) from bad
            report.refusals.append(refusal)
            continue
        values = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "line": line}
        values |= {"prompt_id": identify_prompt(pair.prompt), "source": pair.source, "margin": pair.margin}
        if others := [name for name, ids in without.items() if values["prompt_id"] in ids]:
            tally.elsewhere[others[0]] += 1
            continue
        tally.add(values)
        yield values | carried


def name_of(dataset: Dataset) -> str:
    """Return what reports call a data set."""
    return (dataset.info.description or "data set").partition("\n")[0][:80]


def lines_of(dataset: Dataset) -> Sequence[int]:
    """Return the line of each row in its source; of a data set without lines the number of the row, from 1."""
    if dataset.features.get("line") == Value("int64"):
        return dataset["line"][:]
    return range(1, len(dataset) + 1)
