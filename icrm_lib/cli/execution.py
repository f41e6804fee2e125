"""Notebooks are executed by papermill, each in a kernel of the running interpreter; stored outputs are renewed."""

import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError, strip_color

from icrm_lib import records
from icrm_lib.cli.notebooks import Notebook, find_notebooks, select

OFFLINE_PROFILES = {"smoke", "lab"}  # run with the hub switched off: everything they need is made locally
SOURCE_LINES_SHOWN = 15
KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


class RunError(RuntimeError):
    """A notebook did not run to its end."""


def prepare_environment(profile: str, *, refresh: bool = False) -> None:
    """Set the environment that the kernels inherit; what the caller has set for the hub stays.

    Args:
        profile: smoke and lab run with the hub switched off.
        refresh: kernels find ICRM_REFRESH=1, and only then: what is committed may be written anew.
    """
    os.environ.pop("ICRM_REFRESH", None)
    if refresh:
        os.environ["ICRM_REFRESH"] = "1"
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


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove, in place, what differs between two runs or machines of an executed notebook but tells nothing.

    Outputs, execution counts and cell ids stay. Stream output that arrived in pieces is joined.

    Raises:
        RunError: a cell wrote to stderr, which no stored output may hold.
    """
    language = dict(notebook.metadata.get("language_info", {}))
    language.pop("version", None)
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": language})
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
        records.write_bytes(notebook.path, f"{nbformat.writes(result)}\n".encode())
        print(f"stored {notebook.path.relative_to(root).as_posix()}")
