"""Execute the notebooks in order, with parameters that are checked before anything runs.

    python -m icrm_lib.cli.run                                    every notebook, profile smoke, into runs/smoke/
    python -m icrm_lib.cli.run --profile lab --only 02,04         two of them, another profile
    python -m icrm_lib.cli.run --only 04 -p SEED 3                one of them, another seed
    python -m icrm_lib.cli.run --refresh                          renew the outputs stored in notebooks/

`make run` and `make refresh` call this. papermill does the executing; on its own it would only warn about a
parameter that no notebook has and then run the default, so the names and types are checked here first.

Exit status: 0 all notebooks ran; 1 a cell failed (its source and traceback are printed); 2 the command line
names something that does not exist, and nothing was run; 130 interrupted.
"""

import argparse
import ast
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError, strip_color

from icrm_lib import records
from icrm_lib.profiles import check_profile
from icrm_lib.runtime import nearest, project_root

OFFLINE_PROFILES = {"smoke", "lab"}  # run with the hub switched off: everything they need is made locally
SOURCE_LINES_SHOWN = 15
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


class UsageError(ValueError):
    """The command line asks for something that does not exist or does not fit."""


class RunError(RuntimeError):
    """A notebook did not run to its end."""


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


# --- what is there, and does the command line fit it? ---


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
    kinds = next((k for k in ((bool,), (int,), (float,), (list, tuple), (dict,)) if isinstance(default, k)), None)
    try:
        if kinds in ((int,), (float,)):
            return kinds[0](text)
        try:
            value = ast.literal_eval(text)  # first, because YAML takes 1e-3 for a string
        except (ValueError, SyntaxError):
            value = yaml.safe_load(text)
        if kinds and not isinstance(value, kinds):
            raise ValueError
    except (ValueError, yaml.YAMLError) as error:
        kind = f"of type {kinds[0].__name__}" if kinds else "readable as YAML"
        raise UsageError(
            f"parameter {name}: {text!r} is not {kind}, as its default {default!r} is; give a value like it"
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


# --- running ---


def prepare_environment(profile: str) -> None:
    """Set the environment that the kernels inherit; what the caller has set for the hub stays."""
    if profile in OFFLINE_PROFILES:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["ICRM_UNATTENDED"] = "1"  # no progress bars inside the notebooks
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    # A kernel named python3 in the user's home may start another interpreter; this folder is searched first.
    paths = [str(Path(sys.prefix, "share", "jupyter")), os.environ.get("JUPYTER_PATH", "")]
    os.environ["JUPYTER_PATH"] = os.pathsep.join(path for path in paths if path)
    logging.getLogger("papermill").setLevel(logging.ERROR)


def indented(source: str) -> str:
    """Return the first lines of a cell, indented, with a note on how many are left out."""
    lines = source.splitlines()
    more = len(lines) - SOURCE_LINES_SHOWN
    shown = lines[:SOURCE_LINES_SHOWN] + ([f"... ({more} more lines)"] if more > 0 else [])
    return "\n".join(f"    {line}" for line in shown)


def last_started(output: Path) -> tuple[int, str]:
    """Return the execution number and the source of the last cell that papermill started."""
    cells = [cell for cell in nbformat.read(output, as_version=4).cells if cell.cell_type == "code"]
    started = [i for i, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    position = started[-1] if started else 0
    return position + 1, cells[position].source


def execute(notebook: Notebook, output: Path, parameters: dict[str, Any], root: Path) -> nbformat.NotebookNode:
    """Execute one notebook with the running interpreter's kernel, in the project root.

    Args:
        notebook: what to execute; its file is not changed.
        output: the executed notebook is written there while it runs.
        parameters: injected after the cell tagged `parameters`; with none, no cell is injected.
        root: the project root, the working directory of the cells.

    Raises:
        RunError: a cell failed or the kernel died; the message shows cell, error and partial output.
        KeyboardInterrupt: the run was interrupted.
    """
    try:
        with records.locked(output):  # of two runs in one folder the second waits
            return papermill.execute_notebook(
                notebook.path,
                output,
                parameters=parameters,
                kernel_name="python3",
                cwd=root,
                # The kernel listens on this machine only; its warning about unencrypted TCP would hide our lines.
                extra_arguments=["--IPKernelApp.log_level=ERROR"],
                progress_bar={"desc": notebook.name, "leave": False} if sys.stderr.isatty() else False,
            )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from error
        number, source, trace = error.exec_count, error.source, strip_color("\n".join(error.traceback))
        trace = trace or f"{error.ename}: {error.evalue}"
    except RuntimeError as error:  # nbclient's and jupyter_client's word for a kernel that is gone
        number, source = last_started(output)
        trace = f"{error}\nThe kernel is gone; the usual cause is a lack of memory."
    cell = number - bool(parameters)  # papermill's injected cell counts in the output, not in the notebook
    raise RunError(
        f"{notebook.name} failed in code cell {cell} (In [{number}] of the partial output):\n\n"
        f"{indented(source)}\n\n{trace}\n\npartial output: {output.relative_to(root).as_posix()}"
    )


def execute_all(
    notebooks: Sequence[Notebook], folder: Path, parameters: dict[str, dict[str, Any]], root: Path
) -> list[nbformat.NotebookNode]:
    """Execute notebooks one after the other; print a line before and after each and a table at the end.

    Args:
        notebooks: in running order.
        folder: receives one executed notebook each.
        parameters: notebook name -> parameters, as `assign` returns them; missing means none.
        root: the project root.

    Returns:
        the executed notebooks.

    Raises:
        RunError: the first failure; later notebooks are not started.
    """
    executed, lines, total = [], [], 0.0
    width = max(len(notebook.name) for notebook in notebooks)
    for position, notebook in enumerate(notebooks, start=1):
        prefix = f"[{position}/{len(notebooks)}] {notebook.name}"
        print(f"{prefix} …", flush=True)
        start = time.perf_counter()
        output = folder / notebook.path.name
        executed.append(execute(notebook, output, parameters.get(notebook.name, {}), root))
        seconds = time.perf_counter() - start
        total += seconds
        print(f"{prefix} done in {seconds:.1f} s", flush=True)
        lines.append(f"{notebook.name:<{width}}  {seconds:7.1f} s  {output.relative_to(root).as_posix()}")
    print("\n" + "\n".join([*lines, f"{'total':<{width}}  {total:7.1f} s"]), flush=True)
    return executed


# --- renewing the stored outputs ---


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove, in place, what differs between two runs or machines of an executed notebook but tells nothing.

    Outputs, execution counts and cell ids stay. Stream output that arrived in pieces is joined.

    Raises:
        RunError: a cell wrote to stderr, which no stored output may hold.
    """
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": KERNELSPEC,
            "language_info": {
                key: value for key, value in notebook.metadata.get("language_info", {}).items() if key != "version"
            },
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type != "code":
            continue
        joined: list[nbformat.NotebookNode] = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                raise RunError(
                    f"cell In [{cell.execution_count}] wrote to stderr: {output.text.strip()[:500]!r}; "
                    "mend the cause or quiet the library before the first import, then refresh again"
                )
            previous = joined[-1] if joined else None
            if output.output_type == "stream" and previous and previous.output_type == "stream":
                previous.text += output.text
            else:
                joined.append(output)
        cell.outputs = joined
    return notebook


def refresh(root: Path, only: str | None) -> None:
    """Execute notebooks with their own defaults and store the outputs in place.

    They run in `runs/refresh/` first, so a notebook that fails leaves the stored one as it was.

    Raises:
        UsageError: `only` names no notebook.
        RunError: a cell failed or wrote to stderr.
    """
    notebooks = select(find_notebooks(root), only)
    executed = execute_all(notebooks, root / "runs" / "refresh", {}, root)
    for notebook, result in zip(notebooks, executed, strict=True):
        try:
            normalise(result)
        except RunError as error:
            raise RunError(f"{notebook.name}: {error}") from error
        temporary = notebook.path.with_suffix(".tmp")
        nbformat.write(result, temporary)
        os.replace(temporary, notebook.path)
        print(f"stored {notebook.path.relative_to(root).as_posix()}")


# --- command line ---


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """Run the command line; see the module's text.

    Args:
        arguments: without the program's name; those of the process when None.
        root: the project root; found from the working directory when None.

    Returns:
        the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m icrm_lib.cli.run", description="Execute the notebooks in order.")
    parser.add_argument("--profile", default="smoke", help="a file of profiles/ without its ending (smoke)")
    parser.add_argument("--only", metavar="04[,05]", help="only these notebooks, by number or name")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="assignments",
        help="set a parameter in every notebook that declares it; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--refresh", action="store_true", help="run with the defaults and store the outputs in notebooks/"
    )
    options = parser.parse_args(arguments)
    try:
        if options.refresh and (options.assignments or options.profile != "smoke"):
            raise UsageError("stored outputs are those of the defaults: --refresh takes neither -p nor --profile")
        root = root or project_root()
        check_profile(options.profile, root / "profiles")
        prepare_environment(options.profile)
        if options.refresh:
            refresh(root, options.only)
        else:
            notebooks = select(find_notebooks(root), options.only)
            parameters = assign(notebooks, options.profile, options.assignments)
            execute_all(notebooks, root / "runs" / options.profile, parameters, root)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
