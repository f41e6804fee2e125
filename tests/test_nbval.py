"""What a bare `pytest --nbval` does with conftest.py and sanitize.cfg."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]


def pytest_nbval(folder: Path, *cells: NotebookNode) -> subprocess.CompletedProcess:
    """Run a bare `pytest --nbval` in a small project around the given cells, with the real conftest.py."""
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "conftest.py", folder)
    shutil.copy(ROOT / "notebooks" / "sanitize.cfg", folder / "notebooks")
    (folder / "pyproject.toml").write_text('[tool.pytest.ini_options]\ntestpaths = ["notebooks"]\n')
    # A kernel that exists nowhere: only --nbval-current-env makes it run.
    notebook = new_notebook(cells=list(cells), metadata={"kernelspec": {"name": "gone", "display_name": "x"}})
    nbformat.write(notebook, folder / "notebooks" / "01_small.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def stored(source: str, text: str | None, count: int, **metadata) -> NotebookNode:
    outputs = [new_output("stream", name="stdout", text=text)] if text else []
    return new_code_cell(source, execution_count=count, outputs=outputs, metadata=metadata)


def test_nbval_compares_and_counts(tmp_path):
    figure = new_output("display_data", data={"text/plain": "<Figure size 640x480 with 1 Axes>"})
    show = "from IPython.display import display\ndisplay({'text/plain': '<Figure size 1x1>'}, raw=True)"
    result = pytest_nbval(
        tmp_path,
        stored("import sys, os\nprint('mood', file=sys.stderr)\nprint(6 * 7)", "42\n", 1),
        stored("print(object())", "<object object at 0x123>\n", 2),
        stored("print('time')", "other\n", 3, tags=["nbval-ignore-output"]),
        new_code_cell(show, execution_count=4, outputs=[figure]),
        stored("x = 1", None, 5),
        stored("print(os.environ['HF_HUB_OFFLINE'], os.environ['TOKENIZERS_PARALLELISM'])", "1 false\n", 6),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    # Compared with content: 42, the object, the environment; not the ignored cell, not the bare picture.
    assert re.search(r"^01_small +3 compared of +5 with output of +6 code cells$", result.stdout, re.MULTILINE)
    assert re.search(r"^total +3 compared of +5 with output of +6 code cells$", result.stdout, re.MULTILINE)


def test_nbval_finds_a_changed_output_and_does_not_count_it(tmp_path):
    result = pytest_nbval(tmp_path, stored("print(1)", "1\n", 1), stored("print(0.5)", "0.25\n", 2))
    assert result.returncode == 1
    assert "Cell outputs differ" in result.stdout
    assert re.search(r"^total +1 compared of +2 with output of +2 code cells$", result.stdout, re.MULTILINE)


def test_every_sanitize_rule_is_in_force():
    from nbval.plugin import get_sanitize_patterns

    text = (ROOT / "notebooks" / "sanitize.cfg").read_text(encoding="utf-8")
    rules = get_sanitize_patterns(text)
    assert len(rules) == len(re.findall(r"^regex:", text, flags=re.MULTILINE)) > 0
    cleaned = "at 0x7f3a, [00:01<00:02, 3.1it/s], <Figure size 640x480 with 1 Axes>, 0.5 [1:2]"
    for pattern, replacement in rules:
        assert re.search(pattern, cleaned), f"{pattern} matches nothing it was written for"
        cleaned = re.sub(pattern, replacement, cleaned)
    assert cleaned == "at 0xADDRESS, [CLOCK], <Figure>, 0.5 [1:2]"
