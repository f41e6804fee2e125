"""Files that no reader ever sees half of, and what is in them in a few digits."""

import errno
import glob
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from icrm_lib import runtime


def fingerprint(value: Any) -> str:
    """Return a 16-digit hash of a JSON-able value, the same for equal values on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return xxhash.xxh3_64_hexdigest(text.encode())


def file_checksum(path: str | Path) -> str:
    """Return the 128-bit xxh3 checksum of a file's bytes, read in 8 MiB pieces."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while piece := file.read(1 << 23):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Let an error that a full disk or a write-protected folder caused say so, whatever library raised it."""
    path = Path(path)
    try:
        yield
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))  # how libraries in Rust say it, safetensors for one
        number, named = getattr(error, "errno", None) or (told and int(told[1])), getattr(error, "filename", None)
        if number is None or (isinstance(named, str) and not _is_inside(named, path.parent)):
            raise  # no fault of the disk, or another file's
        shown = runtime.display_path(path)
        if named and number in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise PermissionError(
                number, f"cannot write {shown} ({os.strerror(number)}); make its folder writable, or choose another"
            ) from error
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                errno.ENOSPC, f"no space left while writing {shown}; make some and run again, what is finished is kept"
            ) from error
        raise


def _is_inside(name: str, folder: Path) -> bool:
    return Path(os.path.abspath(name)).is_relative_to(os.path.abspath(folder))


def checksum(data: bytes) -> str:
    """Return the 128-bit xxh3 checksum of some bytes; `file_checksum` gives the same for a file that holds them."""
    return xxhash.xxh3_128_hexdigest(data)


def write_json(path: str | Path, value: Any, *, compact: bool = False) -> Path:
    """Write a JSON file so that no reader ever sees half of it.

    Args:
        path: the file; its folder is made.
        value: JSON-able, without nan.
        compact: one line, for files that come by the hundred.
    """
    layout = {"separators": (",", ":")} if compact else {"indent": 1}
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, **layout) + "\n"
    return write_bytes(path, text.encode())


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file so that no reader ever sees half of it (temporary name, fsync, rename); its folder is made."""
    path = Path(path)
    temporary = temporary_name(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in left_behind(path):
            left.unlink(missing_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


def left_behind(path: Path) -> list[Path]:
    """Temporary files and folders of processes that are no more."""
    found = path.parent.glob(f".{glob.escape(path.name)}.*-*")
    pids = {left: left.name.removeprefix(f".{path.name}.").partition("-")[0] for left in found}
    return [left for left, pid in pids.items() if pid.isdecimal() and not is_running(int(pid))]


def is_running(pid: int) -> bool:
    """Whether a process is there, whoever it belongs to."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def temporary_name(path: Path) -> Path:
    """A name that nobody else can be using, in the same folder, so that the rename stays on one file system."""
    return path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: the file is not JSON; the message names it and the remedy.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run the stage again") from error
