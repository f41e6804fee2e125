"""Which reader a file's name asks for, and files that are not what their name says."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from icrm_lib.rows.json_rows import read_json
from icrm_lib.rows.parquet_rows import read_parquet

# The first bytes, what they are, the ending they should have, the remedy.
_KINDS = (
    (b"\x1f\x8b", "compressed by gzip", ".gz", "add .gz to its name"),
    (b"PAR1", "a Parquet file", ".parquet", "name it .parquet"),
    (b"PK\x03\x04", "a zip archive", "", "unpack it"),
    (b"version https://git-lfs", "a Git LFS pointer and not the data", "", "run `git lfs pull`"),
)
_READERS: dict[str, Callable[[Path, str], Iterator[tuple[int, Any]]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".jsonl.gz": read_json,
    ".json.gz": read_json,
    ".parquet": read_parquet,
}
ENDINGS = tuple(_READERS)


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
    return _READERS[ending(path)](path, name)


def ending(path: Path) -> str:
    """Return the suffix of a file, with the one before .gz."""
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
