"""Preference pairs from files, the hub or a data set: bad rows refused with line, reason and remedy.

A pair is a prompt (a conversation that ends with the user's turn) with two replies to it, the chosen and the
rejected one.
"""

import os
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, Features, List, Value

from icrm_lib.preferences.forms import SPAN_KEYS, Tie, read_row
from icrm_lib.preferences.prompts import identify_prompt
from icrm_lib.preferences.report import Refusal, Report
from icrm_lib.preferences.spans import SPANS
from icrm_lib.preferences.tally import Tally
from icrm_lib.rows import ENDINGS, BadRow, ending, file_rows

TIES = "ties: neither reply is preferred"
BATCH = 1000  # rows that are Python objects at a time
_COLUMNS = {
    "prompt": List({"role": Value("string"), "content": Value("string")}),
    "chosen": Value("string"),
    "rejected": Value("string"),
    "line": Value("int64"),
    "prompt_id": Value("string"),
    "source": Value("string"),
    "margin": Value("float64"),
    **dict.fromkeys(SPAN_KEYS, SPANS),
}


def load_preferences(
    source: str | Path,
    *,
    split: str = "train",
    strict: bool = False,
    revision: str | None = None,
    ignore: Collection[str] = (),
) -> tuple[Dataset, Report]:
    """Read preference pairs; every good row is kept, every bad one reported.

    A row has the keys `chosen` and `rejected`, each one

    - a text, the reply; `prompt` is then a text or a list of messages; or
    - a list of messages ({"role", "content"}): the reply turns, or the whole conversation. Both lists must be
      equal up to the final reply. `prompt` may be left out with whole conversations.

    Beside the prompt, `system`, `history` (earlier turns) and `input` (of an instruction) are read, and `source`
    (text). A margin is `margin`, or the difference of two ratings of `RATING_KEYS`; a rating that is no number costs no
    row. Places that people marked in a reply are `chosen_spans` and `rejected_spans`, lists of {"start", "end",
    "label"} in characters of that reply alone (see `preferences.spans`). Other public forms are known by their columns
    (`preferences.forms` lists them), and the report names them.

    A pair is what the people who compared the replies saw, so text is never lost in silence: a column of text that is
    not read (tools, images, documents, thoughts, ...) costs the row, unless `ignore` names it, its name says that it is
    about the row (`..._id`, `..._model`, `category`, `feedback`, ...), or the pair holds the same text.

    Texts are kept as they are, but for a model's end mark behind both replies and a prompt repeated in front of both,
    which are taken off and counted. Refused is what would become something else on the way or teaches nothing, among it
    texts without a visible character, replies that look the same, tool calls, and texts that have been through a chat
    template or are lists written as text. Ties (a margin of 0, a verdict that says so) are left out and counted.

    Args:
        source: a .jsonl, .json (array or lines; both may end in .gz) or .parquet file, or a hub id
            "owner/name".
        split: split of a hub data set, slices like "train[:1000]" included. A file has only "train".
        strict: raise at the first bad row instead of leaving it out.
        revision: branch, tag or commit of a hub data set.
        ignore: columns, and keys of messages, that are left out, text or not; the report's first lines count them.

    Returns:
        A data set with the columns `prompt` (list of messages), `chosen` and `rejected` (str), `line` (int,
        from 1), `prompt_id` (16 hex digits, equal for prompts that differ only in white space or Unicode
        composition), `source`, `chosen_spans`, `rejected_spans` if any row has them (None where it has not), `margin`
        (float64) if all rows have one; and the report.

    Raises:
        FileNotFoundError, IsADirectoryError: `source` is no file.
        ValueError: unknown file type, a file that is damaged or in another encoding as a whole (see
            `rows.file_rows`), not a single usable row (the message holds the report), or with `strict` a bad row.
        ConnectionError: the hub data set cannot be loaded.
    """
    return collect_preferences(*opened_rows(source, split, revision), strict=strict, ignore=ignore)


def preference_rows(dataset: Dataset, *, ignore: Collection[str] = ()) -> tuple[Dataset, Report]:
    """Bring preference pairs that are already a data set into the form that `load_preferences` returns, with a report.

    Args:
        dataset: rows as `load_preferences` describes them; a column `line` of integers is kept.
        ignore: see there.

    Raises:
        ValueError: not a single usable row.
    """
    dataset = dataset.with_format(None)  # numbers and lists, not tensors
    return collect_preferences(name_of(dataset), zip(lines_of(dataset), dataset, strict=True), ignore=ignore)


def opened_rows(source: str | Path, split: str, revision: str | None) -> tuple[str, Iterable[tuple[int, Any]]]:
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


def collect_preferences(
    name: str,
    rows: Iterable[tuple[int, Any]],
    *,
    strict: bool = False,
    file: str | Path | None = None,
    carry: Sequence[str] = (),
    without: Mapping[str, Container[str]] | None = None,
    ignore: Collection[str] = (),
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
        ignore: see `load_preferences`.
    """
    ignore = (ignore,) if isinstance(ignore, str) else tuple(ignore)
    if needed := sorted({"prompt", "chosen", "rejected"} & set(ignore)):
        raise ValueError(f"ignore= names {needed[0]!r}, without which there is no pair; name columns beside the pair")
    report, tally = Report(name), Tally()
    schema = Features(_COLUMNS | {key: Value("float64") for key in carry}).arrow_schema
    good = _good_rows(rows, report, strict, carry, without or {}, ignore, tally)
    with pa.OSFile(str(file), "wb") if file else pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, schema) as writer:
            while batch := list(islice(good, BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
        buffer = None if file else sink.getvalue()
    report.kept = len(tally)
    report.warnings += tally.warnings()
    report.notes += tally.notes(ignore)
    if not report.kept:
        raise ValueError(f"no usable preference pair:\n{report}")
    return open_preferences(file or buffer, name), report


def open_preferences(table: str | Path | pa.Buffer, name: str) -> Dataset:
    """Return the data set that was written to an Arrow file (memory-mapped) or buffer; later reports call it `name`."""
    dataset = Dataset.from_buffer(table) if isinstance(table, pa.Buffer) else Dataset.from_file(str(table))
    # Columns are fixed before the first row is known. A margin of 0 in place of a missing one would silently change
    # the loss of those rows, so some missing ones cost the column.
    least = {"source": len(dataset), "margin": 1, **dict.fromkeys(SPAN_KEYS, len(dataset))}
    unused = [key for key, count in least.items() if dataset.data.column(key).null_count >= count]
    dataset = dataset.remove_columns(unused)
    dataset.info.description = name
    return dataset


def _good_rows(
    rows: Iterable[tuple[int, Any]],
    report: Report,
    strict: bool,
    carry: Sequence[str],
    without: Mapping[str, Container[str]],
    ignore: Collection[str],
    tally: Tally,
) -> Iterator[dict[str, Any]]:
    """Yield a row of the data set for each row that can be used; the others go into report and tally."""
    for line, row in rows:
        tally.see(row)
        try:
            reading = read_row(row, ignore=ignore, carry=carry)
        except Tie:
            report.dropped[TIES] = report.dropped.get(TIES, 0) + 1
            continue
        except BadRow as bad:
            refusal = Refusal(report.source, line, bad.reason, bad.remedy)
            if strict:
                raise ValueError(str(refusal)) from bad
            report.refusals.append(refusal)
            continue
        tally.read(reading)
        for pair in reading.pairs:
            values = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "line": line}
            values |= {"prompt_id": identify_prompt(pair.prompt), "source": pair.source, "margin": pair.margin}
            values |= {"chosen_spans": pair.chosen_spans, "rejected_spans": pair.rejected_spans}
            if others := [name for name, ids in without.items() if values["prompt_id"] in ids]:
                tally.elsewhere[others[0]] += 1
                continue
            tally.add(values)
            yield values | reading.carried


def name_of(dataset: Dataset) -> str:
    """Return what reports call a data set."""
    return (dataset.info.description or "data set").partition("\n")[0][:80]


def lines_of(dataset: Dataset) -> Sequence[int]:
    """Return the line of each row in its source; of a data set without lines the number of the row, from 1."""
    if dataset.features.get("line") == Value("int64"):
        return dataset["line"][:]
    return range(1, len(dataset) + 1)
