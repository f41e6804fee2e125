"""What code an artefact depends on: the module that makes it and all that this imports, as far as it computes."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import icrm_lib
from icrm_lib import records

PACKAGE = Path(icrm_lib.__file__).parent


@cache
def code_fingerprint(module: str, package: Path = PACKAGE) -> str:
    """Return a hash of the code of a module and of every module of its package that it imports, through any chain.

    Comments, docstrings and layout play no part: they change no number, and must not train a model again.

    Args:
        module: dotted name, e.g. "icrm_lib.lab.data".
        package: folder of the package that the name begins with.
    """
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
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return tree
