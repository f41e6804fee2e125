"""The notebooks there are, those that a command names, the parameters each gets; checked before anything runs."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import yaml

from icrm_lib.runtime import nearest


class UsageError(ValueError):
    """The command line asks for something that does not exist or does not fit."""


@dataclass(frozen=True)
class Notebook:
    """A notebook to run: where it lies and the parameters it declares, with their default values."""

    path: Path
    defaults: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def aliases(self) -> list[str]:
        """The names it answers to: "04", "04_reward_model", "reward_model"."""
        number, _, noun = self.name.partition("_")
        return [number, self.name, noun]


def read_notebook(path: Path) -> Notebook:
    """Read a notebook's declared parameters from its cell tagged `parameters`.

    The cell is parsed as Python. `papermill.inspect_notebook` reads it line by line instead and loses a
    parameter whose comment contains an equals sign.

    Raises:
        UsageError: a default is not a plain literal.
    """
    cells = nbformat.read(path, as_version=4).cells
    source = next((cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])), "")
    defaults = {}
    for statement in ast.parse(source).body:
        try:
            defaults[statement.targets[0].id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError) as error:
            raise UsageError(
                f"{path.name}: the parameter {ast.unparse(statement)!r} is not `NAME = plain literal`; "
                "compute derived values in a later cell"
            ) from error
    return Notebook(path, defaults)


def find_notebooks(root: Path) -> list[Notebook]:
    """Return the notebooks `notebooks/NN_*.ipynb` under `root` in the order of their numbers.

    Raises:
        UsageError: there are none, or one declares its parameters in a way that cannot be read.
    """
    paths = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise UsageError(f"no notebooks/NN_*.ipynb in {root}; start from inside a complete checkout")
    return [read_notebook(path) for path in paths]


def select(notebooks: Sequence[Notebook], only: str | None) -> list[Notebook]:
    """Return the notebooks named by `only`, in running order; all of them when `only` is None or empty.

    Args:
        notebooks: what there is.
        only: numbers, names or nouns, separated by commas: "04", "04_reward_model", "reward_model", "02,04".

    Raises:
        UsageError: a name fits no notebook; the message names the nearest one.
    """
    if not only:
        return list(notebooks)
    by_alias = {alias: notebook for notebook in notebooks for alias in notebook.aliases}
    wanted = set()
    for part in only.strip(",").split(","):
        name = part.strip().removesuffix(".ipynb").zfill(2)
        if name not in by_alias:
            names = [notebook.name for notebook in notebooks]
            raise UsageError(f"no notebook {name!r}; {nearest(name, names)}")
        wanted.add(by_alias[name].name)
    return [notebook for notebook in notebooks if notebook.name in wanted]


def parse_value(name: str, text: str, default: Any) -> Any:
    """Turn a value from the command line into one of the type of the parameter's default.

    Args:
        name: the parameter, for the message.
        text: the value as typed. Where the default is a string it stays as typed (paths and "off" included);
            otherwise it is read as a Python literal or as YAML, so that `True`, `yes` and `[a, b]` all work.
        default: the default in the notebook; None takes a value of any type.

    Raises:
        UsageError: the value is not of the default's type.
    """
    if isinstance(default, str):
        return text
    kind = type(default)
    try:
        if kind in (int, float):
            return kind(text)
        try:
            value = ast.literal_eval(text)  # first, because YAML takes 1e-3 for a string
        except (ValueError, SyntaxError):
            value = yaml.safe_load(text)
        if default is not None and not isinstance(value, (list, tuple) if kind in (list, tuple) else kind):
            raise ValueError
    except (ValueError, yaml.YAMLError) as error:
        wanted = "readable as YAML" if default is None else f"of type {kind.__name__}"
        raise UsageError(
            f"parameter {name}: {text!r} is not {wanted}, as its default {default!r} is; give a value like it"
        ) from error
    return value


def assign(
    notebooks: Sequence[Notebook], profile: str, assignments: Sequence[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """Decide which parameters each notebook gets.

    Args:
        notebooks: the selected notebooks.
        profile: goes to every notebook that declares PROFILE.
        assignments: (name, value as typed); the last one of a name counts.

    Returns:
        notebook name -> parameters; a notebook gets only what it declares.

    Raises:
        UsageError: no selected notebook declares the name, or the value has the wrong type.
    """
    known = sorted({name for notebook in notebooks for name in notebook.defaults} | {"PROFILE"})
    for name, value in assignments:
        if name == "PROFILE":
            raise UsageError(f"the profile is not given with -p; write --profile {value} (make run PROFILE={value})")
        if name not in known:
            where = ", ".join(notebook.name for notebook in notebooks)
            hint = nearest(name, known) if known else "it has no parameters"
            raise UsageError(f"no parameter {name!r} in {where}; {hint}")
    return {
        notebook.name: {
            **({"PROFILE": profile} if "PROFILE" in notebook.defaults else {}),
            **{
                name: parse_value(name, value, notebook.defaults[name])
                for name, value in assignments
                if name in notebook.defaults
            },
        }
        for notebook in notebooks
    }
