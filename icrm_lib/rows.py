"""Rows of JSON Lines, JSON and Parquet files, each with its line; what cannot be read is the fault of a row or of the
file."""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
# The first bytes, what they are, the ending they should have, the remedy.
_KINDS = (
    (b"\x1f\x8b", "compressed by gzip", ".gz", "add .gz to its name"),
    (b"PAR1", "a Parquet file", ".parquet", "name it .parquet"),
    (b"PK\x03\x04", "a zip archive", "", "unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer and not the data", "", "run `git lfs pull`"),
)
_JSON_NAMES = {bool: "boolean", int: "number", float: "number", dict: "object", list: "array", type(None): "null"}
_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"  # what JSON calls white space
_GAP = re.compile(f"[{_SPACE}]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how "surrogateescape" marks a byte
_CUT = "the rows from here on are not read"


class BadRow(ValueError):
    """A fault of one row: the reason in words that are the same for all rows with this fault, and the remedy."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


def shown(key: str) -> str:
    """Return a key as a message can show it: printable and short."""
    return repr(key)[1:-1][:40]


def type_name(value: Any) -> str:
    """Return what JSON calls the type of a value, or Python where JSON has no such type."""
    return _JSON_NAMES.get(type(value), type(value).__name__)


def file_rows(path: str | Path, name: str | None = None) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of a file, whatever its keys are; a row that cannot be read comes as the `BadRow` that it is.

    An array whose syntax breaks off gives the rows before, and a `BadRow` at that place.

    Args:
        path: a file with one of the endings `ENDINGS`. Lines and rows of an array or table count from 1.
        name: for messages; the file's name when None.

    Raises:
        ValueError: another ending, or a file that is as a whole not what its name says: UTF-16, a Parquet file called
            .jsonl, a Git LFS pointer, a damaged gzip or Parquet file (whose checksums say that no row can be trusted).
    """
    path = Path(path)
    name = name or path.name
    if ending(path) not in ENDINGS:
        raise ValueError(f"cannot read {name!r}: {ending(path)!r} is none of {', '.join(ENDINGS)}; convert the file")
    with open(path, "rb") as file:
        head = file.read(64)
    for start, kind, right, remedy in _KINDS:
        if head.startswith(start) and path.suffix != right:
            raise ValueError(f"{name} is {kind}; {remedy}")
    return _parquet_rows(path, name) if path.suffix == ".parquet" else _json_rows(path, name)


def ending(path: Path) -> str:
    """Return the suffix of a file, with the one before .gz."""
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _json_rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of a file of lines, or (number, row) of one array; both count from 1."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            start = file.peek(64)[:64]
            _check_encoding(start, name)
            if start.removeprefix(_BOM).lstrip().startswith(b"["):
                yield from _bracketed(file.read(), ".json" in path.suffixes)
            else:
                yield from json_lines(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(
            f"{name} is no whole gzip file: {error}; copy or compress it again, or drop .gz if it is plain"
        ) from error


def _check_encoding(start: bytes, name: str) -> None:
    # One error for the file: each of its lines would be refused for a reason of its own.
    encoding = json.detect_encoding(start)
    whole = start[: len(start) // 4 * 4]
    if not encoding.startswith("utf-8") and whole.decode(encoding, "ignore").lstrip().startswith(("{", "[")):
        encoding = encoding.upper()
        its_name = re.sub("-([LB]E)$", r"\1", encoding)  # as iconv spells it
        when = " once it is unpacked" * name.endswith(".gz")
        raise ValueError(
            f"{name} is {encoding}, not UTF-8; convert it, for example with iconv -f {its_name} -t UTF-8{when}"
        )


def json_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, Any]]:
    """Yield (line from 1, row) of JSON lines, blank ones left out; a bad one as the `BadRow` that it is.

    Args:
        lines: an open binary file, or bytes split at line feeds: U+2028, U+0085 and others are ordinary characters
            inside a JSON string and end no line.
    """
    for line, raw in enumerate(lines, 1):
        if raw.removeprefix(_BOM).strip():
            yield line, _parse(raw)


def _bracketed(raw: bytes, is_json: bool) -> Iterator[tuple[int, Any]]:
    """Read a file that begins with a bracket: an array of rows, or lines of which the first is a bad one."""
    first, _, others = raw.removeprefix(_BOM).lstrip().partition(b"\n")
    alone = bool(others.strip()) and not isinstance(_parse(first), BadRow)
    if alone or not (is_json or _is_json(raw)):
        yield from json_lines(raw.split(b"\n"))
    else:
        yield from enumerate(_elements(raw.removeprefix(_BOM).decode("utf-8", "surrogateescape")), 1)


def _is_json(raw: bytes) -> bool:
    try:
        json.loads(raw.removeprefix(_BOM).decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return False
    return True


def _elements(text: str) -> Iterator[Any]:
    """Yield the elements of a JSON array; where its syntax breaks off, a `BadRow` and no more."""
    at, separator = text.index("[") + 1, ","
    if text.startswith("]", _GAP.match(text, at).end()):
        at, separator = text.index("]") + 1, "]"
    while separator == ",":
        try:
            row, end = _element(text, _GAP.match(text, at).end())
        except (ValueError, RecursionError) as error:
            yield _fault(error, _CUT)
            return
        yield row
        separator, at = text[end : end + 1], end + 1
    if separator != "]":
        yield _fault(json.JSONDecodeError("Expecting ',' or ']'", text, at - 1), _CUT)
    elif text[at:].strip(_SPACE):
        yield _fault(json.JSONDecodeError("Extra data", text, at), _CUT)


def _element(text: str, at: int) -> tuple[Any, int]:
    try:
        row, end = _DECODER.raw_decode(text, at)
    except BadRow as bad:
        row, end = bad, json.JSONDecoder().raw_decode(text, at)[1]
    if wrong := _NOT_UTF8.search(text, at, end):
        byte = f"byte 0x{ord(wrong[0]) - 0xDC00:02x} in line {text.count(chr(10), 0, wrong.start()) + 1}"
        row = BadRow("not UTF-8", f"{byte}; save the file as UTF-8")
    return row, _GAP.match(text, end).end()


def _parse(raw: bytes) -> Any:
    """Return the parsed JSON text of a line, or the `BadRow` that it is."""
    # Without its line end, so that an error at the end of the line is not put on the next one.
    line = raw.removeprefix(_BOM).rstrip(b"\r\n")
    if (at := line.find(b"\0")) >= 0:
        return BadRow("NUL byte", f"at offset {at}; the file is damaged or no text, write it again")
    try:
        return _DECODER.decode(line.decode("utf-8"))
    except BadRow as bad:
        return bad
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return BadRow("not UTF-8", f"byte 0x{byte:02x} at offset {error.start}; save the file as UTF-8")
    except (ValueError, RecursionError) as error:
        return _fault(error, "write one complete JSON object per line")


def _fault(error: Exception, remedy: str) -> BadRow:
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        return BadRow("JSON syntax error", f"{error.msg.removesuffix(' at')} at {place}; {remedy}")
    what = "thousands of brackets" if isinstance(error, RecursionError) else "an integer of thousands of digits"
    return BadRow("JSON out of bounds", f"found {what}; simplify the row" + f" ({remedy})" * (remedy == _CUT))


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of a key that stands twice, Python would take the last, other tools the first.
    row = dict(items)
    if len(row) < len(items):
        key = Counter(key for key, _ in items).most_common(1)[0][0]
        raise BadRow("repeated key", f"found {shown(key)!r} twice in one object; keep one of them")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parquet_rows(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, row); raises ValueError for a file that cannot be trusted as a whole."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := sorted({column for column in names if names.count(column) > 1}):
                raise ValueError(f"{name} has two columns {twice[0]!r}; write the file again with one of them")
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in _table_rows(batch))
            yield from enumerate(rows, 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{name} is no whole Parquet file: {error}; download or write it again") from error


def _table_rows(table: pyarrow.RecordBatch) -> list[Any]:
    """Return the rows of a table; one that Python cannot hold as the `BadRow` that it is."""
    try:
        return table.to_pylist()
    except (ValueError, OverflowError) as error:  # of one of its rows; find out which
        if len(table) > 1:
            return [row for i in range(len(table)) for row in _table_rows(table.slice(i, 1))]
        if isinstance(error, UnicodeDecodeError):
            byte = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
            return [BadRow("not UTF-8", f"{byte} of a text; write the file again, with texts in UTF-8")]
        return [BadRow("unreadable value", f"{error}; mend or drop its column")]  # a date of the year 300,000, say
