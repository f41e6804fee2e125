"""Where what a profile needs lies on disk: made when it is missing, reused when it is there, never half.

An artefact is the folder `<noun>-<hash>`, the hash naming everything it depends on, so a changed setting makes a new
folder and never meets an old one.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from icrm_lib import records, runtime
from icrm_lib.lab.code import code_fingerprint
from icrm_lib.language_model.causal import refuse_pickles

logger = logging.getLogger(__name__)


class Artefacts:
    """The artefacts of a profile.

    Args:
        folder: where they lie.
        profile: its name, for messages.
    """

    def __init__(self, folder: Path, profile: str):
        self.folder, self.profile = folder, profile

    def path(self, noun: str, key: dict[str, Any]) -> Path:
        """Return where an artefact lies that depends on `key`."""
        return self.folder / f"{noun}-{records.fingerprint(key)}"

    def get(
        self, noun: str, key: dict[str, Any], make: Callable[..., None], *, trains: bool = False, together: bool = False
    ) -> Path:
        """Return the folder of an artefact; `make(folder)` fills it when it is missing or not whole.

        Of two runs that want it one makes it and the other waits.

        Args:
            noun: the first part of its name.
            key: what it depends on beside the code that `make` reaches (JSON-able).
            make: writes into the folder that it is given; defined in the module that decides what is made.
            trains: `make(folder, checkpoints)` gets a second folder, which outlives a run that is cut off.
            together: processes that train together all call `make`; else it is an error to be several.
        """
        key = key | {"made_with": made_with(make.__module__)}
        path = self.path(noun, key)
        checkpoints = self.folder / "checkpoints" / path.name
        if records.is_sealed(path, key, verify=True):
            logger.info("reusing %s", runtime.display_path(path))
            shutil.rmtree(checkpoints, ignore_errors=True)  # of a run that was killed just before it removed them
            return path
        if not together:
            self.refuse_several_processes(noun.replace("_", " "))
        first = runtime.process_index() == 0  # the others train with it; it keeps the files
        with records.locked(path) if first else nullcontext():
            # Nobody may have made it while this run waited; what the first process finds holds for all.
            if _of_first(not records.is_sealed(path, key, verify=True)):
                logger.info("making %s", runtime.display_path(path))
                with records.sealed_folder(path, key) if first else tempfile.TemporaryDirectory() as folder:
                    make(Path(folder), checkpoints) if trains else make(Path(folder))
            if first:
                shutil.rmtree(checkpoints, ignore_errors=True)
        _of_first(None)
        return path

    def refuse_several_processes(self, what: str) -> None:
        """Say that `what` is made by one process, where several run."""
        if runtime.processes() > 1:
            raise RuntimeError(
                f"profile {self.profile}: the {what} is not there yet, and one process makes it, not several; run the "
                "same command first without `accelerate launch` and with --prepare: python -m icrm_lib.cli.train ... "
                "--prepare"
            )


def _of_first(value: Any) -> Any:
    """Return the first process's value in all that train together; none goes on before it."""
    if runtime.processes() == 1:
        return value
    PartialState(cpu=runtime.device() == "cpu")  # starts the group of processes where nobody has
    return broadcast_object_list([value])[0]


@cache
def made_with(module: str) -> dict[str, Any]:
    """Return what an artefact depends on beside its settings: versions, kind of device, and the code of its maker."""
    return {"versions": runtime.versions(), "device": runtime.device(), "code": code_fingerprint(module)}


def is_file(source: str) -> bool:
    """Say whether a data source is a file, there or not, rather than a hub id."""
    return Path(source).suffix in {".jsonl", ".json", ".parquet", ".gz"} or runtime.resolve_path(source).exists()


def model_path(name: str) -> str:
    """Return a model's directory as an absolute path, a hub id as it is.

    Raises:
        ValueError: it looks like a directory, and none is there; or its weights are pickled.
    """
    folder = runtime.resolve_path(name)
    if folder.is_dir():
        refuse_pickles(folder)
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(
            f"no base model directory {name!r} (a relative path starts at the project's folder); correct the path, "
            "or give 'testbed', 'scratch' or a hub id"
        )
    return name
