"""Preference pairs: read them, refuse bad rows with line, reason and remedy, split and tokenise the good
ones.

A pair is a prompt (a conversation that ends with the user's turn) with two replies to it, the chosen and the
rejected one.
"""

import difflib
import math
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import regex
import xxhash
from datasets import Dataset, Features, List, Value

from icrm_lib.preferences.files import ENDINGS, BadRow, ending, file_rows, shown
from icrm_lib.records import fingerprint
from icrm_lib.tokenization import Encoded, Message, ResponseTooLong, cut_prompt, encoder_for

MOST_MARGIN = 3.4e38  # float32's largest number: the loss is computed in it
RATING_KEYS = (
    ("chosen_rating", "rejected_rating"),
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
)
LABEL_KEYS = ("chosen_label", "rejected_label")  # 1 where the response is right, 0 where it is wrong
_ID_KEYS = ("id", "uid", "uuid")
_BATCH = 1000  # rows that are Python objects at a time
_COLUMNS = {
    "prompt": List({"role": Value("string"), "content": Value("string")}),
    "chosen": Value("string"),
    "rejected": Value("string"),
    "line": Value("int64"),
    "prompt_id": Value("string"),
    "source": Value("string"),
    "margin": Value("float64"),
}
_SHAREGPT = (
    "the ShareGPT form: rename 'conversations' to 'prompt', 'from' to 'role' (human: user, gpt: assistant), 'value' to "
    "'content', and give the two replies as 'chosen' and 'rejected'"
)
# Keys with a meaning of their own, never a misspelt one.
_OWN_KEYS = {"prompt", "chosen", "rejected", "prompt_id", "line", "source", "margin", *sum(RATING_KEYS, LABEL_KEYS)}
# Something to see: not white space, a control character, or one that Unicode lets a font leave out (zero width).
_VISIBLE = regex.compile(r"[^\s\p{Cc}\p{DI}\u2800]")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # without the joiners: they change emoji and Persian words
# Compatibility forms that say something else than their plain letters: x² and x2, ½ and 12, ℝ and R.
_MEANT = ("<super>", "<sub>", "<fraction>", "<font>", "<circle>", "<square>")
_JSON_NAMES = {
    bool: "boolean",
    int: "number",
    float: "number",
    dict: "object",
    list: "array",
    type(None): "null",
}


# What was refused, and why --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A row that was left out.

    Attributes:
        file: the source as the user gave it.
        line: line of a JSONL file, otherwise the row's number; both count from 1.
        reason: what is wrong, in words that are the same for all rows with this fault.
        remedy: what was found in this row, and what to do.
    """

    file: str
    line: int
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}; {self.remedy}"


@dataclass
class Report:
    """What became of the rows of a source; `print(report)` shows it as a short table.

    Attributes:
        source: the source as the user gave it (of an absolute path, the last part).
        kept: number of rows that can be used.
        refusals: one entry for each row left out, in the source's order.
        notes: remarks about rows that were kept (duplicates, contradictions, left-out columns).
    """

    source: str
    kept: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """Number of rows left out."""
        return len(self.refusals)

    def counts(self) -> dict[str, int]:
        """Return the number of refused rows for each reason, the most frequent first."""
        return dict(sorted(Counter(r.reason for r in self.refusals).items(), key=lambda item: (-item[1], item[0])))

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.kept} kept, {self.refused} refused"]
        if not (self.kept or self.refused or self.notes):
            lines.append("  it has no rows; check that it is the right one and was written to its end")
        for reason, count in self.counts().items():
            rows = [r for r in self.refusals if r.reason == reason]
            where = ", ".join(str(r.line) for r in rows[:5]) + (", ..." if count > 5 else "")
            lines += [
                f"  {count:>6}  {reason} (line {where})",
                f"          line {rows[0].line}: {rows[0].remedy}",
            ]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


# Loading --------------------------------------------------------------------------------------------------


def load_preferences(
    source: str | Path,
    *,
    split: str = "train",
    strict: bool = False,
    revision: str | None = None,
    file: str | Path | None = None,
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
        file: Arrow file to write the rows to, which the result then reads from disk as it is asked (an existing one
            is overwritten; no data set may still read it). In memory when None.

    Returns:
        A data set with the columns `prompt` (list of messages), `chosen` and `rejected` (str), `line` (int,
        from 1), `prompt_id` (16 hex digits, equal for prompts that differ only in white space or Unicode
        composition), `source` if any row has one, `margin` (float64) if all rows have one; and the report.

    Raises:
        FileNotFoundError, IsADirectoryError: `source` is no file.
        ValueError: unknown file type, a file that is damaged or in another encoding as a whole (see
            `row_files.file_rows`), not a single usable row (the message holds the report), or with `strict` a bad row.
        ConnectionError: the hub data set cannot be loaded.
    """
    name, rows = _open(source, split, revision)
    ids = array("Q")
    pairs, report = collect_preferences(name, _with_ids(rows, ids), strict=strict, file=file)
    report.notes += _repeated(ids)
    return pairs, report


def preference_rows(
    dataset: Dataset, *, strict: bool = False, file: str | Path | None = None
) -> tuple[Dataset, Report]:
    """Bring preference pairs that are already a data set into the form that `load_preferences` returns.

    Args:
        dataset: rows as `load_preferences` describes them; a column `line` of integers is kept.
        strict: raise at the first bad row instead of leaving it out.
        file: as in `load_preferences`.

    Returns:
        Data set and report, as `load_preferences`.

    Raises:
        ValueError: not a single usable row, or with `strict` a bad row.
    """
    dataset = dataset.with_format(None)  # numbers and lists, not tensors
    rows, ids = zip(_lines_of(dataset), dataset, strict=True), array("Q")
    pairs, report = collect_preferences(_name_of(dataset), _with_ids(rows, ids), strict=strict, file=file)
    report.notes += _repeated(ids)
    return pairs, report


def _with_ids(rows: Iterable[tuple[int, Any]], ids: array) -> Iterator[tuple[int, Any]]:
    """Pass rows on and collect a hash of each one's id."""
    for line, row in rows:
        if isinstance(row, dict) and (own := [row[key] for key in _ID_KEYS if row.get(key) is not None]):
            ids.append(xxhash.xxh3_64_intdigest(repr(own).encode()))
        yield line, row


def _repeated(ids: array) -> list[str]:
    count = len(ids) - len(set(ids))
    return [f"{count} rows have the id of an earlier row (ids decide nothing)"] if count else []


def _name_of(dataset: Dataset) -> str:
    return (dataset.info.description or "data set").partition("\n")[0][:80]


def _lines_of(dataset: Dataset) -> Sequence[int]:
    if dataset.features.get("line") == Value("int64"):
        return dataset["line"][:]
    return range(1, len(dataset) + 1)


def collect_preferences(
    name: str,
    rows: Iterable[tuple[int, Any]],
    *,
    strict: bool = False,
    file: str | Path | None = None,
    carry: Sequence[str] = (),
    without: Mapping[str, Container[str]] | None = None,
) -> tuple[Dataset, Report]:
    """Read preference pairs that come one by one; at most `_BATCH` of them are Python objects at a time.

    Args:
        name: of the source, for the report.
        rows: (line, row) with rows as `load_preferences` describes them; a `BadRow` in place of a row is reported.
        strict, file: as in `load_preferences`.
        carry: keys of further numbers that every row has, kept as float64 columns; for example `LABEL_KEYS`.
        without: name -> prompt ids; rows with such a prompt are left out, and a note says how many of each name.

    Returns:
        Data set and report, as `load_preferences`.

    Raises:
        ValueError: not a single usable row, or with `strict` a bad row.
    """
    report, tally = Report(name), _Tally()
    schema = Features(_COLUMNS | {key: Value("float64") for key in carry}).arrow_schema
    good = _good_rows(rows, report, strict, carry, without or {}, tally)
    with pa.OSFile(str(file), "wb") if file else pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, schema) as writer:
            while batch := list(islice(good, _BATCH)):
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
    tally: "_Tally",
) -> Iterator[dict[str, Any]]:
    """Yield a row of the data set for each row that can be used; the others go into report and tally."""
    for line, row in rows:
        try:
            pair = _read_pair(row)
            carried = {key: _number(_require(row, key), key) for key in carry}
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


class _Tally:
    """Counts over all rows, at 16 bytes a row: a row is known by a hash of its texts."""

    def __init__(self) -> None:
        self.rated, self.contrary = 0, 0
        self.elsewhere: Counter[str] = Counter()
        self.rows, self.opposites = array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: dict[str, Any]) -> None:
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
            "rate the chosen reply lower than the rejected one": self.contrary,
            "repeat an earlier row": len(rows) - len(known),
            "prefer the opposite of an earlier row": int(opposed.sum()),
        }
        return notes + [f"{count} rows {what} (kept)" for what, count in counts.items() if count]


class PromptIds:
    """The distinct prompts of a data set, 8 bytes each; `prompt_id in ids` says whether one occurs.

    Args:
        dataset: with a column `prompt_id` of 16 hex digits.
    """

    def __init__(self, dataset: Dataset):
        column = (
            prompt_id for batch in dataset.select_columns("prompt_id").iter(_BATCH) for prompt_id in batch["prompt_id"]
        )
        self._ids = np.unique(np.fromiter((int(prompt_id, 16) for prompt_id in column), np.uint64, len(dataset)))

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, prompt_id: str) -> bool:
        value = np.uint64(int(prompt_id, 16))
        place = np.searchsorted(self._ids, value)
        return bool(place < len(self._ids) and self._ids[place] == value)


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


def identify_prompt(prompt: list[Message]) -> str:
    """Return the `prompt_id` of a prompt: 16 hex digits that white space and Unicode composition do not change."""
    return fingerprint([[m["role"], " ".join(_normal(m["content"]).split())] for m in prompt])


# One row: its form, then the checks -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    prompt: list[Message]
    chosen: str
    rejected: str
    margin: float | None
    source: str | None

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield (key, text) of everything that will be tokenised."""
        yield from (("prompt", m["content"]) for m in self.prompt)
        yield "chosen", self.chosen
        yield "rejected", self.rejected


def _read_pair(row: Any) -> _Pair:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("not a JSON object", f"found {_type_name(row)}; write each row as {{...}}")
    (prompt, chosen), (other, rejected) = (_conversation(row, key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise BadRow(
            "chosen and rejected have different prompts",
            f"{_difference(prompt, other)}; both must be equal up to the final reply",
        )
    source = row.get("source")
    pair = _Pair(prompt, chosen, rejected, _margin(row), source if isinstance(source, str) else None)
    for check in CHECKS:
        check(pair)
    return pair


def _conversation(row: dict, key: str) -> tuple[list[Message], str]:
    """Return everything before the final reply of `row[key]`, and that reply."""
    turns = _messages(_require(row, key), key, "assistant")
    if turns[0]["role"] == "assistant" or row.get("prompt") is not None:
        prompt = _messages(_require(row, "prompt"), "prompt", "user")
    else:
        prompt = []
    if turns[0]["role"] == "assistant":
        turns = prompt + turns
    elif prompt and prompt != turns[:-1] and not (len(prompt) == 1 and prompt[0] in turns[:-1]):
        raise BadRow(
            f"{key!r} does not continue the prompt",
            f"{_difference(prompt, turns)}; drop one of the two prompts",
        )
    _check_roles(turns, key)
    return turns[:-1], turns[-1]["content"]


def _require(row: dict, key: str) -> Any:
    if row.get(key) is not None:
        return row[key]
    if key in row:
        raise BadRow(f"{key!r} is null", "fill it or drop the row")
    if "conversations" in row:
        raise BadRow(f"missing key {key!r}", f"the row has {_SHAREGPT}")
    names = {name.strip().casefold(): name for name in row if name not in _OWN_KEYS}
    near = difflib.get_close_matches(key, names, 1)
    have = ", ".join(map(shown, list(row)[:8])) or "none"
    remedy = f"rename {names[near[0]]!r} to {key!r}" if near else f"add it (keys here: {have})"
    raise BadRow(f"missing key {key!r}", remedy)


def _messages(value: Any, key: str, role: str) -> list[Message]:
    """Return a text as one message of this role, and a list of messages as it is, without other keys."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        _check_plain(value, key)
    if not isinstance(value, list):
        raise BadRow(f"wrong type in {key!r}", f"found {_type_name(value)}; give a text or a list of messages")
    if not value:
        raise BadRow(f"empty conversation in {key!r}", 'give messages like {"role": "user", "content": "..."}')
    for message in value:
        if not isinstance(message, dict):
            raise BadRow(
                f"wrong type in {key!r}",
                f"a message is {_type_name(message)}; give objects with role and content",
            )
        _check_plain(message, key)
        for part in ("role", "content"):
            if not isinstance(message.get(part), str):
                found = _type_name(message[part]) if part in message else f"no {part!r}"
                raise BadRow(f"message without text in {key!r}", f"a message has {found} for {part!r}; give text")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _check_plain(message: dict, key: str) -> None:
    if message.keys() >= {"from", "value"} and message.keys().isdisjoint({"role", "content"}):
        raise BadRow(f"ShareGPT keys in {key!r}", f"a message has {_SHAREGPT}")
    tools = [name for name in ("tool_calls", "function_call") if message.get(name)]
    if tools or message.get("role") in ("tool", "function"):
        found = tools[0] if tools else f"role {message['role']}"
        # Left out, it would make another conversation of this one.
        raise BadRow(
            f"tool call in {key!r}",
            f"a message has {found!r}, which is no text; write calls and results into 'content', or drop the row",
        )


def _check_roles(turns: list[Message], key: str) -> None:
    roles = [turn["role"] for turn in turns]
    if unknown := [role for role in roles if role not in ("system", "user", "assistant")]:
        raise BadRow(f"unknown role in {key!r}", f"found {unknown[0][:40]!r}; use system, user, assistant")
    if roles[-1] != "assistant":
        raise BadRow(
            f"{key!r} does not end with an assistant turn",
            f"the last turn is {roles[-1]!r}; end with the reply",
        )
    talk = roles[1:] if roles[0] == "system" else roles
    if talk != ["user", "assistant"] * (len(talk) // 2):
        order = ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")
        raise BadRow(
            f"roles do not alternate in {key!r}",
            f"found {order}; after an optional system turn: user, assistant, ...",
        )


def _margin(row: dict) -> float | None:
    if row.get("margin") is not None:
        return _number(row["margin"], "margin")
    for keys in RATING_KEYS:
        ratings = [_number(row[key], key) for key in keys if row.get(key) is not None]
        if len(ratings) == 2:
            return ratings[0] - ratings[1]
    return None


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):  # decimals come from Parquet
        found = f"str {value[:20]!r}" if isinstance(value, str) else _type_name(value)
        raise BadRow(f"wrong type in {key!r}", f"found {found}; give a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(f"{key!r} is not finite", f"found {str(value)[:20]}; give a finite number or leave the rating out")
    return number


def _check_encodable(pair: _Pair) -> None:
    for key, text in (*pair.texts(), ("source", pair.source or "")):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X}"
            raise BadRow(
                f"half a character in {key!r}", f"{code} at {error.start} is an unpaired surrogate; remove it"
            ) from None


def _check_nul(pair: _Pair) -> None:
    for key, text in (*pair.texts(), ("source", pair.source or "")):
        if (at := text.find("\0")) >= 0:
            raise BadRow(f"NUL character in {key!r}", f"at {at}; many tools end a text there, remove it")


def _check_text(pair: _Pair) -> None:
    for key, text in pair.texts():
        if _VISIBLE.search(text):
            continue
        # An empty system turn is common and means something: no default system prompt.
        if not (key == "prompt" and pair.prompt[0] == {"role": "system", "content": text}):
            raise BadRow(f"empty text in {key!r}", f"found {text[:20]!r}; fill it or drop the row")


def _check_different(pair: _Pair) -> None:
    if _same(pair.chosen, pair.rejected):
        raise BadRow("chosen equals rejected", f"both are {pair.chosen[:40]!r}; nothing is preferred, drop the row")


def _check_margin(pair: _Pair) -> None:
    if pair.margin is not None and not abs(pair.margin) <= MOST_MARGIN:
        raise BadRow(
            "margin is not finite in float32", f"the ratings' difference is {pair.margin:g}; give smaller numbers"
        )


# Each takes a well-formed pair and raises BadRow. A new kind of fault is a new function here.
CHECKS: tuple[Callable[[_Pair], None], ...] = (
    _check_encodable,
    _check_nul,
    _check_text,
    _check_different,
    _check_margin,
)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


def _same(one: str, other: str) -> bool:
    """Say whether nobody could tell two replies apart. White space inside a line counts, as it does in code."""
    one, other = (_normal(_INVISIBLE.sub("", text).replace("\r\n", "\n")) for text in (one, other))
    if one == other:
        return True
    if one.isascii() and other.isascii():
        return False
    if unicodedata.normalize("NFKC", one) != unicodedata.normalize("NFKC", other):
        return False
    return not any(unicodedata.decomposition(c).startswith(_MEANT) for c in one + other)


def _type_name(value: Any) -> str:
    return _JSON_NAMES.get(type(value), type(value).__name__)


def _difference(left: list[Message], right: list[Message]) -> str:
    for i, (a, b) in enumerate(zip(left, right, strict=False), 1):
        if a != b:
            one, other = (f"{m['role']} {m['content'][:30]!r}" for m in (a, b))
            return f"turn {i} is {one} in one, {other} in the other"
    return f"one has {len(left)} turns, the other {len(right)}"


# Splitting and tokenising ---------------------------------------------------------------------------------


def split_by_prompt(dataset: Dataset, fractions: Sequence[float], seed: int) -> tuple[Dataset, ...]:
    """Split a data set so that no prompt is in two parts.

    The part of a prompt depends on the set of prompts and the seed, not on the order of the rows.

    Args:
        dataset: with a column `prompt_id`.
        fractions: share of the *prompts* for each part; positive, sum 1.
        seed: chooses the assignment.

    Returns:
        One data set for each fraction, rows in their old order.

    Raises:
        ValueError: fractions that are not positive or do not add up to 1, or fewer prompts than it takes to
            fill each part.
    """
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions={list(fractions)} must be positive and add up to 1; for example [0.9, 0.1]")
    ids = dataset["prompt_id"][:]
    order = sorted(set(ids), key=lambda prompt_id: fingerprint([seed, prompt_id]))
    ends = [round(sum(fractions[: i + 1]) * len(order)) for i in range(len(fractions))]
    sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    if min(sizes) == 0:
        raise ValueError(f"{len(order)} prompts cannot fill parts of {list(fractions)}; use fewer parts or more data")
    part_of = dict(zip(order, (part for part, size in enumerate(sizes) for _ in range(size)), strict=True))
    return tuple(
        dataset.select([row for row, prompt_id in enumerate(ids) if part_of[prompt_id] == part])
        for part in range(len(fractions))
    )


def tokenize_pairs(
    dataset: Dataset, tokenizer: Any, *, max_length: int | None = 1024, num_proc: int | None = None
) -> tuple[Dataset, Report]:
    """Tokenise preference pairs for training and scoring, as `tokenization.tokenize_conversation` does.

    Both sides of a pair get the same prompt ids: if the longer reply forces the prompt to be cut, it is cut
        on both sides.

    Args:
        dataset: with the columns `prompt`, `chosen`, `rejected` of `load_preferences`.
        tokenizer: as returned by `tokenization.prepare_tokenizer`.
        max_length: most tokens of one side, or None.
        num_proc: number of processes, or None for this one.

    Returns:
        A data set with the columns `chosen_ids` and `rejected_ids` (lists of int32; the names TRL's
        RewardTrainer takes as already tokenised), `prompt_length` (int32, for both sides), and `margin`,
        `LABEL_KEYS`, `prompt_id`, `source`, `line` where the input has them; and a report with the rows left out
        (reply too long, or impossible under the chat template).

    Raises:
        ValueError: an unprepared tokenizer, a missing column, or not a single usable row.
    """
    encoder_for(tokenizer)  # an unprepared tokenizer is refused here, not in a worker process
    if missing := {"prompt", "chosen", "rejected"} - set(dataset.column_names):
        raise ValueError(f"the data set has no column {sorted(missing)[0]!r}; load it with load_preferences")
    carried = [name for name in ("margin", *LABEL_KEYS, "prompt_id", "source", "line") if name in dataset.column_names]
    ids = List(Value("int32"))
    features = {"chosen_ids": ids, "rejected_ids": ids, "prompt_length": Value("int32")}
    features |= {name: dataset.features[name] for name in carried} | {
        "reason": Value("string"),
        "remedy": Value("string"),
    }
    tokenized = dataset.map(
        _tokenize_batch,
        batched=True,
        batch_size=256,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns=[name for name in dataset.column_names if name not in carried],
        features=Features(features | {"cut": Value("bool")}),
        num_proc=num_proc,
        desc="Tokenizing pairs",
    )
    reasons, remedies = tokenized["reason"][:], tokenized["remedy"][:]
    kept = [row for row, reason in enumerate(reasons) if not reason]
    name = _name_of(dataset)
    lines = _lines_of(dataset)
    report = Report(name, len(kept))
    report.refusals = [Refusal(name, lines[i], why, remedies[i]) for i, why in enumerate(reasons) if why]
    if cut := sum(tokenized["cut"][:]):
        report.notes.append(f"{cut} prompts lost their beginning to fit into {max_length} tokens")
    if not kept:
        raise ValueError(f"no usable preference pair:\n{report}")
    tokenized = tokenized.remove_columns(["reason", "remedy", "cut"])
    return (tokenized.select(kept) if report.refused else tokenized), report


def _tokenize_batch(batch: dict[str, list], tokenizer: Any, max_length: int | None) -> dict[str, list]:
    rows = zip(batch["prompt"], batch["chosen"], batch["rejected"], strict=True)
    encoded = encoder_for(tokenizer).encode([(prompt, [chosen, rejected]) for prompt, chosen, rejected in rows])
    results = [_tokenized_row(pair, max_length, tokenizer.bos_token_id) for pair in encoded]
    return {key: [row[key] for row in results] for key in results[0]}


def _tokenized_row(pair: Encoded | ValueError, max_length: int | None, bos: int | None) -> dict[str, Any]:
    row = {"chosen_ids": [], "rejected_ids": [], "prompt_length": 0, "reason": "", "remedy": "", "cut": False}
    if isinstance(pair, ValueError):
        return row | {"reason": "impossible under the chat template", "remedy": str(pair)}
    chosen, rejected = pair.responses
    try:
        prompt = cut_prompt(pair.prompt, max(len(chosen), len(rejected)), max_length, bos)
    except ResponseTooLong as error:
        return row | {"reason": "reply too long", "remedy": str(error)}
    sides = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected, "prompt_length": len(prompt)}
    return row | sides | {"cut": len(prompt) < len(pair.prompt)}
