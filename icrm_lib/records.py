"""Results and artefacts on disk: a file or folder under its final name is always a whole one."""

import errno
import glob
import json
import logging
import os
import re
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock, Timeout

from icrm_lib import runtime

MANIFEST = "manifest.json"
logger = logging.getLogger(__name__)


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
    temporary = _temporary(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in _left_behind(path):
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


def _left_behind(path: Path) -> list[Path]:
    # Temporary files and folders of processes that are no more.
    found = path.parent.glob(f".{glob.escape(path.name)}.*-*")
    pids = {left: left.name.removeprefix(f".{path.name}.").partition("-")[0] for left in found}
    return [left for left, pid in pids.items() if pid.isdecimal() and not _is_running(int(pid))]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _temporary(path: Path) -> Path:
    # In the same folder, so that the rename stays on one file system; a name nobody else can be using.
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


@contextmanager
def whole_folder(path: str | Path, key: dict) -> Iterator[Path]:
    """Build a folder under a temporary name; give it its final name only when the block ends without error.

    Where two runs may build the same one, hold `locked(path)`: what a killed run left of it is removed first.

    Args:
        path: the final folder; an older one there is replaced.
        key: what the artefact depends on (JSON-able); stored in `manifest.json`, checked by `is_whole`.

    Yields:
        the temporary folder, on the same file system, to write into.
    """
    path = Path(path)
    temporary = _temporary(path)
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise FileExistsError(
                f"{runtime.display_path(path)} is in the way, and no folder that was made here; move it away"
            )
        for left in _left_behind(path):
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
    """Declare a folder finished: `manifest.json` gets `key` and every file's size and checksum; see `is_whole`."""
    folder = Path(folder)
    write_json(folder / MANIFEST, {"key": key, "files": _contents(folder)})


def key_of(folder: str | Path) -> dict | None:
    """Return the key that a folder was sealed with; None where there is no readable manifest."""
    try:
        return read_json(Path(folder) / MANIFEST)["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of a file or folder that two runs could write at the same time; wait while another has it.

    The lock is the operating system's, on a file in `.locks` beside it, and ends with the process that holds it.
    """
    path = Path(path)
    lock = FileLock(path.parent / ".locks" / f"{path.name}.lock")
    with explained(path):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.warning("another run is writing %s; waiting for it", runtime.display_path(path))
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _contents(folder: Path) -> dict[str, list]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {p.relative_to(folder).as_posix(): [p.stat().st_size, file_checksum(p)] for p in files}


def is_whole(path: str | Path, key: dict, *, verify: bool = False) -> bool:
    """Say whether a folder written by `whole_folder` is there, made from `key`, and complete.

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


def environment() -> dict[str, Any]:
    """Return what a number depends on beside its configuration: versions, device, threads, commit."""
    import torch

    return {
        "versions": runtime.versions(),
        "device": runtime.device_name(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "-C", str(runtime.project_root()), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # an unpacked archive without git is a fair way to use the kit


def _record_path(noun: str, profile: str) -> Path:
    return runtime.project_root() / "results" / runtime.plain_name(profile) / runtime.plain_name(f"{noun}.json")


def write_record(noun: str, profile: str, config: dict, metrics: Any) -> Path:
    """Write `results/<profile>/<noun>.json`: {config, environment, metrics}.

    Args:
        noun: the stage, e.g. "reward_model".
        profile: the profile's name.
        config: the resolved configuration.
        metrics: JSON-able results; per seed where there are seeds.

    Raises:
        ValueError: a name that leads out of `results/<profile>`.
    """
    return write_json(_record_path(noun, profile), {"config": config, "environment": environment(), "metrics": metrics})


def read_record(noun: str, profile: str) -> dict:
    """Read the record that `write_record` wrote.

    Raises:
        FileNotFoundError: it does not exist; the message names the command that makes it.
    """
    path = _record_path(noun, profile)
    if not path.is_file():
        raise FileNotFoundError(
            f"no record {runtime.display_path(path)}; the notebook of that noun writes it: make run PROFILE={profile}"
        )
    return read_json(path)
