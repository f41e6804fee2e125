"""The notebook contract of CONTRIBUTING.md, rule by rule, notebook by notebook, and nbval's set-up."""

import ast
import io
import json
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = [
    *("01_bayesian_derivation", "02_preferences", "03_generator", "04_reward_model", "05_benchmarks"),
    *("06_best_of_n", "07_dpo", "08_tables", "09_heatmaps", "10_evidence"),
]
HEADINGS = ("Paper item", "Reads", "Writes", "Cost per profile")
MAX_LINES, MAX_FUNCTIONS, MAX_BYTES = 15, 3, 1_000_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.~/])/(?:home|root|tmp|work|Users)(?![\w-])|file:/|\b[A-Z]:\\\w")


# --- the rules: each takes a notebook and yields what is wrong with it ---

RULES: dict[str, Callable[[NotebookNode], Iterator[str]]] = {}


def rule(check: Callable) -> Callable:
    RULES[check.__name__] = check
    return check


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def parsed(cell: NotebookNode) -> ast.Module:
    """Return a code cell's syntax tree; IPython's own syntax (`%magic`, `!command`) is translated first."""
    return ast.parse(TransformerManager().transform_cell(cell.source))


def texts(notebook: NotebookNode) -> Iterator[str]:
    """Yield every text a reader or a tool sees: sources, text outputs, metadata; no bytes of pictures."""
    yield json.dumps(notebook.metadata)
    for cell in notebook.cells:
        yield cell.source
        yield json.dumps(cell.metadata)
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield "\n".join(output.get("traceback", []))
            for kind, value in output.get("data", {}).items():
                if not kind.startswith("image/") or kind == "image/svg+xml":
                    yield value if isinstance(value, str) else json.dumps(value)


@rule
def title_cell_has_a_claim_and_four_lines(notebook):
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell is not markdown that starts with a `# ` title"
    for heading in HEADINGS:
        if not re.search(rf"^\W*{heading}\W+\w", first.source, flags=re.MULTILINE):
            yield f"the first cell has no line `*{heading}*: ...`"


@rule
def second_cell_holds_the_parameters(notebook):
    tagged = [i for i, cell in enumerate(notebook.cells) if "parameters" in tags(cell)]
    if tagged != [1]:
        yield f"the tag `parameters` belongs on cell 1 alone (counting from 0), not on {tagged}"


@rule
def parameters_are_commented_literals(notebook):
    source = notebook.cells[1].source
    for statement in ast.parse(source).body:
        try:
            (target,) = statement.targets
            ast.literal_eval(statement.value)
            plain = isinstance(target, ast.Name)
        except (AttributeError, ValueError):
            plain = False
        if not plain:
            yield f"`{ast.unparse(statement)}` is not `NAME = plain literal`"
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    commented = {token.start[0] for token in tokens if token.type == tokenize.COMMENT}
    for statement in ast.parse(source).body:
        if statement.end_lineno not in commented:
            yield f"`{ast.unparse(statement)}` has no comment on its line"
        if statement.end_lineno != statement.lineno:
            yield f"`{ast.unparse(statement)}` takes more than one line"


@rule
def parameters_have_the_default_profile(notebook):
    if "PROFILE = 'smoke'" not in map(ast.unparse, ast.parse(notebook.cells[1].source).body):
        yield "the parameters lack `PROFILE = 'smoke'`"


@rule
def a_seed_is_zero_and_used(notebook):
    lines = [line for line in map(ast.unparse, ast.parse(notebook.cells[1].source).body) if line.startswith("SEED ")]
    if lines and lines != ["SEED = 0"]:
        yield f"the default is `SEED = 0`, not `{lines[0]}`"
    names = {
        node.id for cell in code_cells(notebook)[1:] for node in ast.walk(parsed(cell)) if isinstance(node, ast.Name)
    }
    if lines and "SEED" not in names:
        yield "no cell uses SEED; remove it from the parameters"


@rule
def parameters_cell_prints_nothing(notebook):
    if notebook.cells[1].get("outputs"):
        yield "the parameters cell has an output"


@rule
def start_cell_is_not_compared(notebook):
    code = code_cells(notebook)
    if len(code) < 2 or "nbval-ignore-output" not in tags(code[1]):
        yield "the start cell (the second code cell) lacks the tag nbval-ignore-output"


@rule
def cells_are_short(notebook):
    for number, cell in enumerate(code_cells(notebook), start=1):
        lines = [line for line in map(str.strip, cell.source.splitlines()) if line and not line.startswith("#")]
        if len(lines) > MAX_LINES:
            yield f"code cell {number} has {len(lines)} lines of code, more than {MAX_LINES}: {lines[0]}"


@rule
def no_class_and_few_functions(notebook):
    nodes = [node for cell in code_cells(notebook) for node in ast.walk(parsed(cell))]
    for node in nodes:
        if isinstance(node, ast.ClassDef):
            yield f"class {node.name} belongs in icrm_lib"
    functions = [n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    if len(functions) > MAX_FUNCTIONS:
        yield f"{len(functions)} functions, more than {MAX_FUNCTIONS}: {', '.join(functions)}"


@rule
def no_cell_is_empty(notebook):
    for number, cell in enumerate(notebook.cells):
        if not cell.source.strip():
            yield f"cell {number} (counting from 0) is empty"


@rule
def execution_counts_are_one_to_n(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"execution counts are {counts}; run `make refresh`"


@rule
def no_stored_error(notebook):
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"code cell {number} stores {output.ename}: {output.evalue}"


@rule
def no_stored_stderr(notebook):
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                yield f"code cell {number} stores stderr: {output.text.strip()[:200]}"


@rule
def no_absolute_path(notebook):
    for text in texts(notebook):
        for match in ABSOLUTE_PATH.finditer(text):
            start = max(match.start() - 30, 0)
            yield f"absolute path in {text[start : match.end() + 40]!r}"


@rule
def no_trace_of_papermill(notebook):
    for owner in (notebook, *notebook.cells):
        if "papermill" in owner.metadata:
            yield "papermill metadata; run `make refresh`"
    if any("injected-parameters" in tags(cell) for cell in notebook.cells):
        yield "a cell injected by papermill"


@rule
def file_is_small(notebook):
    size = len(nbformat.writes(notebook).encode())
    if size >= MAX_BYTES:
        yield f"{size / 1e6:.2f} MB, not under {MAX_BYTES / 1e6:g} MB; draw fewer or smaller pictures"


@rule
def kernel_is_python3(notebook):
    name = notebook.metadata.get("kernelspec", {}).get("name")
    if name != "python3":
        yield f"the kernel is {name!r}, not 'python3'"


@rule
def last_cell_is_prose(notebook):
    if notebook.cells[-1].cell_type != "markdown":
        yield "the last cell is code; end with what the reader should have seen"


# --- the notebooks ---


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", RULES)
def test_contract(name, path):
    problems = list(RULES[name](nbformat.read(path, as_version=4)))
    assert not problems, "\n".join([f"{path.name}: {name}", *problems])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_named_in_the_readme(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stem in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("stem", EXPECTED)
def test_notebook_exists(stem):
    assert stem in [path.stem for path in NOTEBOOKS]


def test_numbers_are_unique():
    numbers = [path.stem.partition("_")[0] for path in NOTEBOOKS]
    assert len(set(numbers)) == len(numbers)
    assert all(re.fullmatch(r"\d\d", number) for number in numbers)


# --- the rules themselves: a good notebook passes all, each fault is found by its rule ---

TITLE = "# Claim\n\nIt holds.\n\n- *Paper item*: eq. 3\n- *Reads*: x\n- *Writes*: x\n- *Cost per profile*: 1 s"


def good_notebook() -> NotebookNode:
    ok = new_output("stream", name="stdout", text="ok runs/home/x\n")
    return new_notebook(
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        cells=[
            new_markdown_cell(TITLE),
            new_code_cell(
                'PROFILE = "smoke"  # the size\nSEED = 0  # of all draws',
                metadata={"tags": ["parameters"]},
                execution_count=1,
            ),
            new_code_cell("start(PROFILE, SEED)", metadata={"tags": ["nbval-ignore-output"]}, execution_count=2),
            new_code_cell("%precision 3\nprint('ok runs/home/x')", execution_count=3, outputs=[ok]),
            new_markdown_cell("You saw it; see https://example.org/home/x."),
        ],
    )


@pytest.mark.parametrize("name", RULES)
def test_a_good_notebook_passes(name):
    assert list(RULES[name](good_notebook())) == []


def append_code(notebook, source):
    notebook.cells.insert(-1, new_code_cell(source, execution_count=len(code_cells(notebook)) + 1))


def print_in(notebook, text):
    notebook.cells[3].outputs[0].text = text


FAULTS = [
    ("title_cell_has_a_claim_and_four_lines", lambda n: n.cells[0].update(source=TITLE[2:])),
    (
        "title_cell_has_a_claim_and_four_lines",
        lambda n: n.cells[0].update(source=TITLE.replace("Reads", "In")),
    ),
    ("second_cell_holds_the_parameters", lambda n: n.cells[1].metadata.update(tags=[])),
    ("second_cell_holds_the_parameters", lambda n: n.cells[2].metadata.tags.append("parameters")),
    ("parameters_are_commented_literals", lambda n: n.cells[1].update(source="SEED = 1 + f()  # sum")),
    ("parameters_are_commented_literals", lambda n: n.cells[1].update(source="import os  # why")),
    ("parameters_are_commented_literals", lambda n: n.cells[1].update(source="SEED = 0")),
    ("parameters_are_commented_literals", lambda n: n.cells[1].update(source="NAME = '# no comment'")),
    ("parameters_are_commented_literals", lambda n: n.cells[1].update(source="X = [\n    1]  # two lines")),
    ("parameters_have_the_default_profile", lambda n: n.cells[1].update(source="SEED = 0  # seed")),
    ("parameters_have_the_default_profile", lambda n: n.cells[1].update(source='PROFILE = "lab"  # size')),
    ("a_seed_is_zero_and_used", lambda n: n.cells[1].update(source="SEED = 1  # seed")),
    ("a_seed_is_zero_and_used", lambda n: n.cells[2].update(source="start(PROFILE)  # SEED")),
    ("parameters_cell_prints_nothing", lambda n: n.cells[1].update(outputs=n.cells[3].outputs)),
    ("start_cell_is_not_compared", lambda n: n.cells[2].metadata.update(tags=[])),
    ("cells_are_short", lambda n: append_code(n, "x = 1\n" * 16)),
    ("no_class_and_few_functions", lambda n: append_code(n, "class A:\n    pass")),
    (
        "no_class_and_few_functions",
        lambda n: append_code(n, "\n".join(f"def f{i}():\n    return {i}" for i in range(4))),
    ),
    ("no_cell_is_empty", lambda n: append_code(n, " \n")),
    ("execution_counts_are_one_to_n", lambda n: n.cells[3].update(execution_count=4)),
    ("execution_counts_are_one_to_n", lambda n: n.cells[3].update(execution_count=None)),
    (
        "no_stored_error",
        lambda n: n.cells[3].outputs.append(new_output("error", ename="E", evalue="", traceback=[])),
    ),
    ("no_stored_stderr", lambda n: n.cells[3].outputs[0].update(name="stderr")),
    ("no_absolute_path", lambda n: print_in(n, "saved to /home/me/x")),
    ("no_absolute_path", lambda n: print_in(n, "cd /tmp")),
    ("no_absolute_path", lambda n: print_in(n, "'/Users/me'")),
    ("no_absolute_path", lambda n: print_in(n, "file:///x")),
    ("no_absolute_path", lambda n: n.cells[4].update(source="see `/root`")),
    ("no_absolute_path", lambda n: n.metadata.update(path="/home/me")),
    ("no_trace_of_papermill", lambda n: n.metadata.update(papermill={})),
    ("no_trace_of_papermill", lambda n: n.cells[3].metadata.update(papermill={})),
    ("no_trace_of_papermill", lambda n: n.cells[3].metadata.update(tags=["injected-parameters"])),
    ("file_is_small", lambda n: print_in(n, "x" * MAX_BYTES)),
    ("kernel_is_python3", lambda n: n.metadata.kernelspec.update(name="venv")),
    ("last_cell_is_prose", lambda n: n.cells.pop()),
]


@pytest.mark.parametrize(("name", "spoil"), FAULTS)
def test_a_fault_is_found_by_its_rule(name, spoil):
    notebook = good_notebook()
    spoil(notebook)
    assert list(RULES[name](notebook)) != []


def test_every_rule_has_a_fault():
    assert {name for name, _ in FAULTS} == set(RULES)


# --- what a bare `pytest --nbval` does with conftest.py and sanitize.cfg ---


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
