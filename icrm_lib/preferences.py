"""Preference pairs: read them, refuse bad rows with line, reason and remedy, split and tokenise the good
ones.

A pair is a prompt (a conversation that ends with the user's turn) with two replies to it, the chosen and the
rejected one.
"""

import difflib
import gzip
import json
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
from datasets import Dataset, Features, List, Value

from icrm_lib.records import fingerprint
from icrm_lib.tokenization import Encoded, Message, ResponseTooLong, cut_prompt, encoder_for

RATING_KEYS = (
    ("chosen_rating", "rejected_rating"),
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
)
_BOM = b"\xef\xbb\xbf"
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
        for reason, count in self.counts().items():
            rows = [r for r in self.refusals if r.reason == reason]
            where = ", ".join(str(r.line) for r in rows[:5]) + (", ..." if count > 5 else "")
            lines += [
                f"  {count:>6}  {reason} (line {where})",
                f"          line {rows[0].line}: {rows[0].remedy}",
            ]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


class BadRow(ValueError):
    """A fault of one row; see `Refusal` for reason and remedy."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


# Loading --------------------------------------------------------------------------------------------------


def load_preferences(
    source: str | Path, *, split: str = "train", strict: bool = False, revision: str | None = None
) -> tuple[Dataset, Report]:
    """Read preference pairs; every good row is kept, every bad one reported.

    A row has the keys `chosen` and `rejected`, each one

    - a text, the reply; `prompt` is then a text or a list of messages; or
    - a list of messages ({"role", "content"}): the reply turns, or the whole conversation. Both lists must be
      equal up to the final reply. `prompt` may be left out with whole conversations.

    Optional keys: `source` (text), and a margin: `margin`, or one of the pairs in `RATING_KEYS` (margin is
    then their difference).

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
        ValueError: unknown file type, not a single usable row (the message holds the report), or with
            `strict` a bad row.
        ConnectionError: the hub data set cannot be loaded.
    """
    name, rows = _open(source, split, revision)
    return _collect(name, rows, strict)


def preference_rows(dataset: Dataset, *, strict: bool = False) -> tuple[Dataset, Report]:
    """Bring preference pairs that are already a data set into the form that `load_preferences` returns.

    Args:
        dataset: rows as `load_preferences` describes them; a column `line` of integers is kept.
        strict: raise at the first bad row instead of leaving it out.

    Returns:
        Data set and report, as `load_preferences`.

    Raises:
        ValueError: not a single usable row, or with `strict` a bad row.
    """
    return _collect(_name_of(dataset), zip(_lines_of(dataset), dataset, strict=True), strict)


def _name_of(dataset: Dataset) -> str:
    return (dataset.info.description or "data set").partition("\n")[0][:80]


def _lines_of(dataset: Dataset) -> Sequence[int]:
    if dataset.features.get("line") == Value("int64"):
        return dataset["line"][:]
    return range(1, len(dataset) + 1)


def _collect(name: str, rows: Iterable[tuple[int, Any]], strict: bool) -> tuple[Dataset, Report]:
    report, pairs = Report(name), []
    for line, row in rows:
        try:
            pairs.append((line, _read_pair(row)))
        except BadRow as bad:
            refusal = Refusal(name, line, bad.reason, bad.remedy)
            if strict:
                raise ValueError(str(refusal)) from bad
            report.refusals.append(refusal)
    report.kept = len(pairs)
    if not pairs:
        raise ValueError(f"no usable preference pair:\n{report}")
    dataset = _as_dataset(pairs, report)
    dataset.info.description = name  # later reports name it
    return dataset, report


def _open(source: str | Path, split: str, revision: str | None) -> tuple[str, Iterable[tuple[int, Any]]]:
    """Return the source's name for reports, and its rows with their line numbers."""
    path = Path(source).expanduser()
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    looks_like_hub = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)
    if looks_like_hub and not path.exists() and suffix not in _READERS:
        return source, enumerate(_read_hub(source, split, revision), 1)
    name = path.name if path.is_absolute() else str(source)
    if path.is_dir():
        raise IsADirectoryError(f"{name} is a directory; name one .jsonl, .json or .parquet file in it")
    if not path.exists():
        raise FileNotFoundError(
            f"there is no file {name!r}, and it is no hub id (owner/name) either; check the spelling, or "
            "give a path that is absolute or starts where the program runs (in the notebooks: the project's folder)"
        )
    if suffix not in _READERS:
        raise ValueError(f"cannot read {name!r}: {suffix!r} is none of {', '.join(_READERS)}; convert the file")
    if split != "train" or revision is not None:
        raise ValueError(
            f"split={split!r} and revision={revision!r} are for hub data sets, but {name!r} is a file; drop them"
        )
    return name, _READERS[suffix](path)


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        if file.peek(1).removeprefix(_BOM).lstrip().startswith(b"["):
            rows = _parse(file.read())
            yield from enumerate(rows if isinstance(rows, list) else [rows], 1)
            return
        # Lines end at b"\n" and nowhere else: U+2028, U+0085 and others are ordinary characters inside a JSON
        # string.
        for line, raw in enumerate(file, 1):
            if raw.removeprefix(_BOM).strip():
                yield line, _parse(raw)


def _parse(raw: bytes) -> Any:
    """Return the parsed JSON text, or the `BadRow` that it is."""
    try:
        # without its line end, so that an error at the end of the line is not put on the next one
        return json.loads(raw.removeprefix(_BOM).rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = raw.removeprefix(_BOM)[error.start]
        return BadRow("not UTF-8", f"byte 0x{byte:02x} at offset {error.start}; save the file as UTF-8")
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return BadRow("JSON syntax error", f"{error.msg} at {place}; write one complete JSON object per line")
    except (ValueError, RecursionError) as error:  # integers of thousands of digits, thousands of brackets
        return BadRow("JSON out of bounds", f"{error}; simplify the row")


def _read_parquet(path: Path) -> Iterator[tuple[int, Any]]:
    with pyarrow.parquet.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
        yield from enumerate(rows, 1)


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_json,
    ".json": _read_json,
    ".jsonl.gz": _read_json,
    ".json.gz": _read_json,
    ".parquet": _read_parquet,
}


def _read_hub(source: str, split: str, revision: str | None) -> Dataset:
    try:
        return datasets.load_dataset(source, split=split, revision=revision)
    except Exception as error:  # the hub's clients raise errors of four libraries
        raise ConnectionError(
            f"cannot load split {split!r} of the hub data set {source!r} (revision {revision or 'default'}): "
            f"{error}. If a file was meant, there is none of this name; otherwise check the id, the split "
            "and the network, or download the file"
        ) from error


def _as_dataset(pairs: list[tuple[int, "_Pair"]], report: Report) -> Dataset:
    """Turn checked pairs into a data set; remarks about them go into the report's notes."""
    columns: dict[str, list] = {
        "prompt": [pair.prompt for _, pair in pairs],
        "chosen": [pair.chosen for _, pair in pairs],
        "rejected": [pair.rejected for _, pair in pairs],
        "line": [line for line, _ in pairs],
        "prompt_id": [_prompt_id(pair.prompt) for _, pair in pairs],
    }
    features = {
        "prompt": List({"role": Value("string"), "content": Value("string")}),
        "chosen": Value("string"),
        "rejected": Value("string"),
        "line": Value("int64"),
        "prompt_id": Value("string"),
    }
    if any(pair.source is not None for _, pair in pairs):
        columns["source"], features["source"] = [pair.source for _, pair in pairs], Value("string")
    margins = [pair.margin for _, pair in pairs]
    rated = sum(margin is not None for margin in margins)
    if rated == len(pairs):
        columns["margin"], features["margin"] = margins, Value("float64")
    elif rated:
        # A margin of 0 in place of a missing one would silently change the loss of those rows.
        report.notes.append(f"no margin column: only {rated} of {len(pairs)} rows are rated")
    if contrary := sum(margin is not None and margin < 0 for margin in margins):
        report.notes.append(f"{contrary} rows rate the chosen reply lower than the rejected one (kept)")
    report.notes += _repetitions(columns)
    return Dataset.from_dict(columns, features=Features(features))


def _prompt_id(prompt: list[Message]) -> str:
    return fingerprint([[m["role"], " ".join(_normal(m["content"]).split())] for m in prompt])


def _repetitions(columns: dict[str, list]) -> list[str]:
    notes, seen, repeated, contrary = [], set(), 0, 0
    for key in zip(columns["prompt_id"], columns["chosen"], columns["rejected"], strict=True):
        repeated += key in seen
        contrary += (key[0], key[2], key[1]) in seen
        seen.add(key)
    if repeated:
        notes.append(f"{repeated} rows repeat an earlier row (kept)")
    if contrary:
        notes.append(f"{contrary} rows prefer the opposite of an earlier row (kept)")
    return notes


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
    near = difflib.get_close_matches(key, [k for k in row if k not in ("prompt", "chosen", "rejected")], 1)
    have = ", ".join(list(row)[:8]) or "none"
    raise BadRow(f"missing key {key!r}", f"rename {near[0]!r} to {key!r}" if near else f"add it (keys here: {have})")


def _messages(value: Any, key: str, role: str) -> list[Message]:
    """Return a text as one message of this role, and a list of messages as it is, without other keys."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
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
        for part in ("role", "content"):
            if not isinstance(message.get(part), str):
                found = _type_name(message[part]) if part in message else f"no {part!r}"
                raise BadRow(f"message without text in {key!r}", f"a message has {found} for {part!r}; give text")
    return [{"role": m["role"], "content": m["content"]} for m in value]


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
    for better, worse in RATING_KEYS:
        if row.get(better) is not None and row.get(worse) is not None:
            return _number(row[better], better) - _number(row[worse], worse)
    return None


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRow(f"wrong type in {key!r}", f"found {_type_name(value)}; give a number")
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


def _check_text(pair: _Pair) -> None:
    for key, text in pair.texts():
        # An empty system turn is common and means something: no default system prompt.
        if not text.strip() and not (key == "prompt" and pair.prompt[0] == {"role": "system", "content": text}):
            raise BadRow(f"empty text in {key!r}", f"found {text[:20]!r}; fill it or drop the row")


def _check_different(pair: _Pair) -> None:
    if _normal(pair.chosen) == _normal(pair.rejected):
        raise BadRow("chosen equals rejected", f"both are {pair.chosen[:40]!r}; nothing is preferred, drop the row")


def _check_margin(pair: _Pair) -> None:
    if pair.margin is not None and not math.isfinite(pair.margin):
        raise BadRow("margin is not finite", f"the ratings' difference is {pair.margin}; give smaller numbers")


# Each takes a well-formed pair and raises BadRow. A new kind of fault is a new function here.
CHECKS: tuple[Callable[[_Pair], None], ...] = (_check_encodable, _check_text, _check_different, _check_margin)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()


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
        `prompt_id`, `source`, `line` where the input has them; and a report with the rows left out (reply too
        long, or impossible under the chat template).

    Raises:
        ValueError: an unprepared tokenizer, a missing column, or not a single usable row.
    """
    encoder_for(tokenizer)  # an unprepared tokenizer is refused here, not in a worker process
    if missing := {"prompt", "chosen", "rejected"} - set(dataset.column_names):
        raise ValueError(f"the data set has no column {sorted(missing)[0]!r}; load it with load_preferences")
    carried = [name for name in ("margin", "prompt_id", "source", "line") if name in dataset.column_names]
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
