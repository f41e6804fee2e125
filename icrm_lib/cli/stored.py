"""The outputs stored in `notebooks/`, renewed."""

import os
from pathlib import Path

import nbformat

from icrm_lib.cli.execution import RunError, execute_all
from icrm_lib.cli.notebooks import find_notebooks, select

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


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
