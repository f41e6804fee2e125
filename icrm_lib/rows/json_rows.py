"""Rows of JSON, a line each or in one array; a text that is no JSON is a fault of its row."""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from icrm_lib.rows.bad_row import BadRow, shown

_BOM = b"\xef\xbb\xbf"
_SPACE = " \t\r\n"  # what JSON calls white space
_GAP = re.compile(f"[{_SPACE}]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")  # how "surrogateescape" marks a byte
_CUT = "the rows from here on are not read"


def read_json(path: Path, name: str) -> Iterator[tuple[int, Any]]:
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
        raise ValueError(f"{name} is {encoding}, not UTF-8; convert it, for example with iconv -f {encoding} -t UTF-8")


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
