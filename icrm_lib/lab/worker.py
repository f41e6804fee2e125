"""What a worker of a grid does with a cell, on the machine of the driver or on another one.

Nothing here loads torch before `start_worker` has quieted the libraries.
"""

import copy
import io
import os
import shutil
import tarfile
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from icrm_lib import records, runtime
from icrm_lib.lab.cells import Cell
from icrm_lib.profiles import Profile, RewardModelSettings


@dataclass(frozen=True)
class Job:
    """A cell to compute, and what its worker must know of the driver.

    Attributes:
        profile, cell, settings, purpose: see `cell.compute_cell`.
        code: `cell.code()` of the driver.
        machine: `artefacts.machine()` of the driver.
        names: the files and folders that come along, relative to the project's folder.
    """

    profile: Profile
    cell: Cell
    settings: RewardModelSettings
    purpose: str
    code: str
    machine: dict[str, Any]
    names: tuple[str, ...] = ()


def work(job: Job) -> tuple[Cell, dict[str, Any] | Exception]:
    """Compute a cell where what it reads lies on this disk; return its record, or what went wrong."""
    from icrm_lib.lab.cell import code, compute_cell

    try:
        if code() != job.code:
            raise RuntimeError(
                f"this worker of {runtime.display_path(runtime.project_root())} has other code of icrm_lib than the "
                "driver of the grid; install the same commit on every machine, change no file while a grid runs, and "
                "start it again"
            )
        return job.cell, compute_cell(job.profile, job.cell, job.settings, job.purpose)
    except Exception as error:  # the other cells are worth having, whatever went wrong with this one
        return job.cell, _sendable(error)


def work_elsewhere(job: Job, *archives: np.ndarray) -> tuple[Cell, dict[str, Any] | Exception]:
    """Compute a cell on a machine that shares no disk with the driver.

    Args:
        job: with the names of what comes along.
        archives: `archive` of each.
    """
    start_worker(str(_own_root()))
    from icrm_lib.lab.artefacts import adopt

    for name, packed in zip(job.names, archives, strict=True):
        unpack(packed, _own_root() / name)
    adopt(job.machine)
    return work(job)


def work_on_ray(job: Job, *stored: Any) -> tuple[Cell, dict[str, Any] | Exception]:
    """The same where the archives lie in Ray's object store."""
    import ray

    return work_elsewhere(job, *ray.get(list(stored)))


def start_worker(root: str, parent: int | None = None) -> None:
    """Make a process a worker.

    Args:
        root: the project's folder, or what stands for it.
        parent: process that this one ends with; None for no such.
    """
    os.environ |= {"ICRM_ROOT": root, "ICRM_UNATTENDED": "1"}
    runtime.quiet()
    import torch

    torch.set_num_threads(1)  # two processes of one thread do more than two of two on two cores
    if parent:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    # A worker of loky whose parent was killed goes on for minutes, and beside the next run.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


@cache
def _own_root() -> Path:
    """Return the folder of this process that stands for the project's; no other process waits for it."""
    for left in Path(tempfile.gettempdir()).glob(f"{ROOT}*"):  # clusters kill their workers, and nothing tidies up
        try:
            lock = time.time() - left.stat().st_mtime > SECONDS_TO_START and records.claim(left / ALIVE)
        except OSError:
            continue  # another user's, or another process has just removed it
        if lock:
            shutil.rmtree(left, ignore_errors=True)
            lock.release()
    folder = Path(tempfile.mkdtemp(prefix=ROOT))
    _LOCKS.append(records.claim(folder / ALIVE))
    return folder


# Of the folder of a process: how its name begins, the lock that is held while the process lives, and when it surely is.
ROOT, ALIVE, SECONDS_TO_START = "icrm-worker-", "alive", 600
_LOCKS: list = []


def _sendable(error: Exception) -> Exception:
    """Return an error that another process can build again, from its class and its arguments as `copy` does."""
    try:
        copy.copy(error)
        plain = not error.__dict__ and all(isinstance(part, str | int | float | None) for part in error.args)
    except Exception:
        plain = False
    return error if plain else RuntimeError(f"{type(error).__name__}: {error}")


def archive(path: Path) -> np.ndarray:
    """Return a file or folder as the bytes of a tar file. Type: uint8, which joblib's backends move without a copy."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(path, arcname="it", filter=_without_locks)
    return np.frombuffer(stream.getvalue(), dtype=np.uint8)


def _without_locks(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if ".locks" in Path(member.name).parts else member


def unpack(packed: np.ndarray, path: Path) -> None:
    """Write what `archive` read to `path`; what is there already stays."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.tobytes())) as tar:
            tar.extractall(folder, filter="data")
        os.replace(Path(folder) / "it", path)
