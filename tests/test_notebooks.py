"""Every notebook keeps the rules of CONTRIBUTING.md, and every rule finds the fault that it is for."""

from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_rules import MAX_BYTES, RULES, code_cells

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = [
    *("01_bayesian_derivation", "02_preferences", "03_generator", "04_reward_model", "05_benchmarks"),
    *("06_best_of_n", "07_dpo", "08_tables", "09_heatmaps", "10_evidence"),
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", RULES)
def test_contract(name, path):
    problems = list(RULES[name](nbformat.read(path, as_version=4)))
    assert not problems, "\n".join([f"{path.name}: {name}", *problems])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_named_in_the_readme(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stem in (ROOT / "README.md").read_text(encoding="utf-8")


def test_these_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == EXPECTED


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
