"""Folders that are finished or not there: sealed by a manifest of what they were made from and hold."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from icrm_lib import runtime
from icrm_lib.records.files import explained, file_checksum, left_behind, read_json, temporary_name, write_json

MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


@contextmanager
def sealed_folder(path: str | Path, key: dict) -> Iterator[Path]:
    """Build a folder under a temporary name; give it its final name only when the block ends without error.

    Where two runs may build the same one, hold `locked(path)`: what a killed run left of it is removed first.

    Args:
        path: the final folder; an older one there is replaced.
        key: what the artefact depends on (JSON-able); stored in `manifest.json`, checked by `is_sealed`.

    Yields:
        the temporary folder, on the same file system, to write into.
    """
    path = Path(path)
    temporary = temporary_name(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise FileExistsError(
                f"{runtime.display_path(path)} is in the way, and no folder that was made here; move it away"
            )
        for left in left_behind(path):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        try:
            yield temporary
            seal(temporary, key)
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def seal(folder: str | Path, key: dict) -> None:
    """Declare a folder finished: `manifest.json` gets `key` and every file's size and checksum; see `is_sealed`."""
    folder = Path(folder)
    write_json(folder / MANIFEST, {"key": key, "files": _contents(folder)})


def key_of(folder: str | Path) -> dict | None:
    """Return the key that a folder was sealed with; None where there is no readable manifest."""
    try:
        return read_json(Path(folder) / MANIFEST)["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _contents(folder: Path) -> dict[str, list]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): [p.stat().st_size, file_checksum(p)] for p in files}


def is_sealed(path: str | Path, key: dict, *, verify: bool = False) -> bool:
    """Say whether a folder written by `sealed_folder` is there, made from `key`, and complete.

    Args:
        path: the folder.
        key: what the artefact must depend on.
        verify: compare every file's checksum, not only its size.
    """
    path = Path(path)
    try:
        manifest = read_json(path / MANIFEST)
        if manifest["key"] != json.loads(json.dumps(key)):
            return False
        for name, (size, checksum) in manifest["files"].items():
            file = path / name
            if file.stat().st_size != size or (verify and file_checksum(file) != checksum):
                return False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # the manifest is not there or not one, or a file is missing
    return True


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of a file or folder that two runs could write at the same time; wait while another has it.

    The lock is the operating system's, on a file in `.locks` beside it, and ends with the process that holds it.
    """
    lock = claim(path)
    if lock is None:
        logger.warning("another run is writing %s; waiting for it", runtime.display_path(path))
        lock = _lock(Path(path))
        with explained(path):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def claim(path: str | Path) -> FileLock | None:
    """Take the same lock without waiting: it is to be released, by any thread; None while another run has it."""
    path = Path(path)
    lock = _lock(path)
    with explained(path):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
    return lock


def _lock(path: Path) -> FileLock:
    return FileLock(path.parent / ".locks" / f"{path.name}.lock", thread_local=False)
