"""Where what a profile needs lies on disk: made when it is missing, reused when it is there, never half.

An artefact is the folder `<noun>-<hash>`, the hash naming everything it depends on, so a changed setting makes a new
folder and never meets an old one. On what code it depends, the imports of its maker's module tell.
"""

import ast
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

import icrm_lib
from icrm_lib import records, runtime
from icrm_lib.language_model import smollm2
from icrm_lib.language_model.loading import refuse_pickles

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
        self, noun: str, key: dict[str, Any], make: Callable, *given: Any, trains: bool = False, together: bool = False
    ) -> Path:
        """Return the folder of an artefact; `make(*given, folder)` fills it when it is missing or not whole.

        Of two runs that want it one makes it and the other waits.

        Args:
            noun: the first part of its name.
            key: what it depends on beside the code that `make` reaches (JSON-able).
            make: writes into the folder that it is given; defined in the module that decides what is made.
            given: for `make`.
            trains: `make(*given, folder, checkpoints)` gets a second folder, which outlives a run that is cut off.
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
                    make(*given, Path(folder), *[checkpoints] * trains)
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
def machine() -> dict[str, Any]:
    """Return what of a machine an artefact depends on: versions and kind of device."""
    return {"versions": runtime.versions(), "device": runtime.device()}


@cache
def made_with(module: str) -> dict[str, Any]:
    """Return what an artefact depends on beside its settings: versions, kind of device, and the code of its maker."""
    return {**(_MACHINE or machine()), "code": code_fingerprint(module)}


_MACHINE: dict[str, Any] = {}


def adopt(other: dict[str, Any]) -> None:
    """Take the artefacts of another machine for this one's: what was made there is not made here again.

    Args:
        other: `machine()` of where they were made.
    """
    _MACHINE.clear()
    _MACHINE.update(other)
    made_with.cache_clear()


def is_file(source: str) -> bool:
    """Say whether a data source is a file, there or not, rather than a hub id."""
    return Path(source).suffix in {".jsonl", ".json", ".parquet", ".gz"} or runtime.resolve_path(source).exists()


def model_path(name: str) -> str:
    """Return a model's directory as an absolute path, a hub id as it is.

    Raises:
        ValueError: it looks like a directory, and none is there; its weights are pickled; or it is the model of
            `make real`, which has not run.
    """
    if name == smollm2.NAME:
        return str(smollm2.converted())
    folder = runtime.resolve_path(name)
    if folder.is_dir():
        refuse_pickles(folder)
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(
            f"no base model directory {name!r} (a relative path starts at the project's folder); correct the path, "
            "or give 'testbed', 'scratch', 'smollm2' or a hub id"
        )
    return name


PACKAGE = Path(icrm_lib.__file__).parent


@cache
def code_fingerprint(module: str, package: Path = PACKAGE) -> str:
    """Return a hash of the code of a module and of every module of its package that it imports, through any chain.

    Comments, docstrings and layout play no part: they change no number, and must not train a model again.

    Args:
        module: dotted name, e.g. "icrm_lib.lab.data".
        package: folder of the package that the name begins with.

    Raises:
        ValueError: no such module in the package, a `functools.partial` as maker, say; its hash would be of nothing.
    """
    if _file(module, package) is None:
        raise ValueError(f"no module {module!r} in {package.name}; let a function of the package make the artefact")
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name, package)
        if path is None or str(path) in found:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        waiting += _imported(tree, package.name)
        found[str(path)] = ast.dump(_without_docstrings(tree))
    return records.fingerprint(sorted(found.values()))


def _file(name: str, package: Path) -> Path | None:
    """The file of a module; of a function, class or constant the file of the module that it is taken from."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = package.parent.joinpath(*parts[:length])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
    return None


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == package)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            node.body = [one for one in body if not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant))]
    return tree
