"""Rows to a data set of pairs, in memory or in a file, and a report of what became of them."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from icrm_lib.preferences.forms import read_pair, require
from icrm_lib.preferences.prompts import identify_prompt
from icrm_lib.preferences.ratings import as_number
from icrm_lib.preferences.report import Refusal, Report
from icrm_lib.preferences.tally import Tally
from icrm_lib.rows import BadRow

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


def collect_preferences(
    name: str,
    rows: Iterable[tuple[int, Any]],
    *,
    strict: bool = False,
    file: str | Path | None = None,
    carry: Sequence[str] = (),
    without: Mapping[str, Container[str]] | None = None,
) -> tuple[Dataset, Report]:
    """Read preference pairs that come one by one; at most `BATCH` of them are Python objects at a time.

    Args:
        name: of the source, for the report.
        rows: (line, row) with rows as `load_preferences` describes them; a `BadRow` in place of a row is reported.
        strict: raise at the first bad row instead of leaving it out.
        file: Arrow file to write the rows to, which the result then reads from disk as it is asked (an existing one
            is overwritten; no data set may still read it). In memory when None.
        carry: keys of further numbers that every row has, kept as float64 columns; for example `LABEL_KEYS`.
        without: name -> prompt ids; rows with such a prompt are left out, and a note says how many of each name.

    Returns:
        Data set and report, as `load_preferences`.

    Raises:
        ValueError: not a single usable row, or with `strict` a bad row.
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
    dataset = Dataset.from_file(str(file)) if file else Dataset.from_buffer(buffer)
    return _described(dataset, name), report


def open_preferences(file: str | Path, name: str) -> Dataset:
    """Return the data set that was written with `file=`, memory-mapped.

    Args:
        file: the Arrow file.
        name: of the source, for later reports.
    """
    return _described(Dataset.from_file(str(file)), name)


def _described(dataset: Dataset, name: str) -> Dataset:
    # Columns are fixed before the first row is known. A margin of 0 in place of a missing one would silently change
    # the loss of those rows, so some missing ones cost the column.
    nulls = {key: dataset.data.column(key).null_count for key in ("source", "margin")}
    unused = [key for key, least in (("source", len(dataset)), ("margin", 1)) if nulls[key] >= least]
    dataset = dataset.remove_columns(unused)
    dataset.info.description = name  # later reports name it
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
