"""The rules of CONTRIBUTING.md for notebooks: each takes a notebook and yields what is wrong with it."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Callable, Iterator

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

HEADINGS = ("Paper item", "Reads", "Writes", "Cost per profile")
MAX_LINES, MAX_FUNCTIONS, MAX_BYTES = 15, 3, 1_000_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.~/])/(?:home|root|tmp|work|Users)(?![\w-])|file:/|\b[A-Z]:\\\w")

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
