"""Looking at artefacts from outside: their names, their nouns, their bytes."""

from collections.abc import Iterable
from pathlib import Path


def folders(folder: Path) -> set[str]:
    """Return the names of the artefacts' folders, temporary ones included."""
    return {path.name for path in folder.iterdir()} - {".locks"} if folder.exists() else set()


def nouns(names: Iterable[str]) -> set[str]:
    return {name.rpartition("-")[0] for name in names}


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Return time and bytes of every file."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def conversations(dataset: Iterable[dict], side: str) -> list[list[dict[str, str]]]:
    return [[*row["prompt"], {"role": "assistant", "content": row[side]}] for row in dataset]
