"""The runner: refuses what does not exist, passes parameters, reports times and errors, refreshes."""

import json
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from icrm_lib.cli import run
from icrm_lib.cli.execution import KERNELSPEC, normalise, prepare_environment
from icrm_lib.cli.notebooks import UsageError, assign, find_notebooks, parse_value, select

CHANGED = ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY", "JUPYTER_PATH", "ICRM_REFRESH")
PARAMETERS = 'PROFILE = "smoke"  # which profile\nSEED = 0  # the seed, SEED = 0 by default\nRATE = 0.5  # a rate'


def write_notebook(path: Path, *cells: str, parameters: str = PARAMETERS) -> None:
    """Write a notebook of a title, a parameters cell and code cells."""
    notebook = new_notebook(metadata={"kernelspec": KERNELSPEC})
    first = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook.cells = [new_markdown_cell("# Title"), first, *map(new_code_cell, cells)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with the profiles smoke and lab and the notebooks 01_first and 02_second."""
    for variable in CHANGED:
        monkeypatch.setenv(variable, "")  # so that what the runner sets is taken back after the test
        monkeypatch.delenv(variable)
    (tmp_path / "profiles").mkdir()
    for profile in ("smoke", "lab"):
        (tmp_path / "profiles" / f"{profile}.yaml").touch()
    write_notebook(tmp_path / "notebooks" / "01_first.ipynb", "print(PROFILE, SEED, RATE)")
    write_notebook(
        tmp_path / "notebooks" / "02_second.ipynb",
        "import os\nprint(SEED, NAME, os.getcwd(), os.environ['HF_HUB_OFFLINE'])",
        parameters='SEED = 7  # the seed\nNAME = "none"  # any text\nFLAG = False  # on or off',
    )
    return tmp_path


def stdout_of(path: Path) -> str:
    """Return what all cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--profile", "smoek"], ["'smoek'", "'smoke'"]),
        (["--only", "01_frist"], ["'01_frist'", "'01_first'"]),
        (["--only", "01,second_"], ["'second_'", "'02_second'"]),
        (["--only", "99"], ["'99'", "01_first", "02_second"]),
        (["-p", "SEEED", "3"], ["'SEEED'", "'SEED'"]),
        (["-p", "SEED", "3", "-p", "NAMES", "x"], ["'NAMES'", "'NAME'"]),
        (["--only", "01", "-p", "NAME", "x"], ["'NAME'", "01_first"]),  # 02 has it, 01 has not
        (["-p", "SEED", "three"], ["SEED", "'three'", "int"]),
        (["-p", "SEED", "1.5"], ["SEED", "'1.5'", "int"]),
        (["-p", "RATE", "high"], ["RATE", "'high'", "float"]),
        (["-p", "FLAG", "maybe"], ["FLAG", "'maybe'", "bool"]),
        (["-p", "FLAG", "1"], ["FLAG", "'1'", "bool"]),
        (["-p", "PROFILE", "lab"], ["--profile lab"]),
        (["--refresh", "-p", "SEED", "3"], ["--refresh"]),
        (["--refresh", "--profile", "lab"], ["--refresh"]),
    ],
)
def test_refused_with_status_2_and_a_hint(project, capsys, arguments, named):
    assert run.main(arguments, root=project) == 2
    message = capsys.readouterr().err
    assert [part for part in named if part not in message] == []
    assert not (project / "runs").exists()


def test_a_parameter_that_is_no_literal_is_refused(project, capsys):
    write_notebook(project / "notebooks" / "03_bad.ipynb", parameters="HALF = 1 / 2  # derived")
    assert run.main([], root=project) == 2
    assert "03_bad.ipynb: the parameter 'HALF = 1 / 2'" in capsys.readouterr().err


def test_no_notebooks_is_an_error(project, capsys):
    for path in (project / "notebooks").iterdir():
        path.unlink()
    assert run.main([], root=project) == 2
    assert "no notebooks/NN_*.ipynb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("3", 0, 3),
        ("-3", 0, -3),
        ("010", 0, 10),  # YAML would read it as octal
        ("1e-3", 0.5, 0.001),  # YAML would read it as text
        ("2", 0.5, 2.0),
        ("true", False, True),
        ("True", False, True),
        ("off", True, False),
        ("off", "on", "off"),
        ("007", "x", "007"),
        ("../data/pairs.jsonl", "testbed", "../data/pairs.jsonl"),
        ("null", None, None),
        ("pairs.jsonl", None, "pairs.jsonl"),
        ("1e-3", None, 0.001),
        ("[1e-3, 2]", [1], [0.001, 2]),
        ("[a, b]", ["x"], ["a", "b"]),
        ("{a: 1}", {}, {"a": 1}),
    ],
)
def test_a_value_takes_the_type_of_the_default(text, default, value):
    parsed = parse_value("X", text, default)
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(("text", "default"), [("a", [1]), ("[1]", {}), ("1", []), ("{", None), ("", 0)])
def test_a_value_of_another_type_is_refused(text, default):
    with pytest.raises(UsageError, match="parameter X"):
        parse_value("X", text, default)


def test_parameters_go_where_they_are_declared(project):
    parameters = assign(find_notebooks(project), "lab", [("SEED", "3"), ("NAME", "x"), ("SEED", "4")])
    assert parameters == {"01_first": {"PROFILE": "lab", "SEED": 4}, "02_second": {"SEED": 4, "NAME": "x"}}


@pytest.mark.parametrize(
    ("only", "names"),
    [
        (None, ["01_first", "02_second"]),
        ("", ["01_first", "02_second"]),
        ("02", ["02_second"]),
        ("2", ["02_second"]),
        ("second", ["02_second"]),
        ("02_second.ipynb", ["02_second"]),
        ("02, 01", ["01_first", "02_second"]),
    ],
)
def test_selection_keeps_the_order_of_the_numbers(project, only, names):
    assert [notebook.name for notebook in select(find_notebooks(project), only)] == names


def test_notebooks_run_in_order_with_their_parameters_and_times(project, capsys):
    assert run.main(["--profile", "smoke", "-p", "SEED", "3", "-p", "NAME", "a b"], root=project) == 0
    folder = project / "runs" / "smoke"
    assert stdout_of(folder / "01_first.ipynb") == "smoke 3 0.5\n"
    assert stdout_of(folder / "02_second.ipynb") == f"3 a b {project} 1\n"
    first, second = re.escape("[1/2] 01_first"), re.escape("[2/2] 02_second")
    expected = (
        rf"{first} …\n{first} done in \d+\.\d s\n{second} …\n{second} done in \d+\.\d s\n\n"
        r"01_first   +\d+\.\d s  runs/smoke/01_first\.ipynb\n"
        r"02_second  +\d+\.\d s  runs/smoke/02_second\.ipynb\n"
        r"total      +\d+\.\d s\n"
    )
    assert re.fullmatch(expected, capsys.readouterr().out)


def test_a_failing_cell_ends_the_run_with_its_error(project, capsys):
    write_notebook(project / "notebooks" / "01_first.ipynb", "x = 1", "y = x / 0\nprint('not reached')")
    assert run.main([], root=project) == 1
    captured = capsys.readouterr()
    assert "01_first failed in code cell 3 (In [4]" in captured.err  # one more in the output: the injected one
    assert "    y = x / 0\n" in captured.err
    assert "ZeroDivisionError: division by zero" in captured.err
    assert "\x1b" not in captured.err
    assert "partial output: runs/smoke/01_first.ipynb" in captured.err
    assert "02_second" not in captured.out
    assert not (project / "runs" / "smoke" / "02_second.ipynb").exists()


def test_a_dead_kernel_is_reported_with_the_cell_that_ran(project, capsys):
    write_notebook(project / "notebooks" / "01_first.ipynb", "x = 1", "import os\nos._exit(9)", "x = 2")
    assert run.main(["--only", "01"], root=project) == 1
    message = capsys.readouterr().err
    parts = ("01_first failed in code cell 3", "os._exit(9)", "The kernel is gone")
    assert [part for part in parts if part not in message] == []


def test_the_kernel_is_that_of_the_running_interpreter(project, monkeypatch):
    # A user-level kernel named python3 that starts something else, and a user who prefers it.
    kernel = project / "home" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "other", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(project / "home"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    write_notebook(project / "notebooks" / "01_first.ipynb", "import sys\nprint(sys.executable)")
    assert run.main(["--only", "01"], root=project) == 0
    assert stdout_of(project / "runs" / "smoke" / "01_first.ipynb") == f"{sys.executable}\n"


def test_the_hub_is_off_for_what_is_made_here_and_the_callers_choice_stays(project, monkeypatch):
    prepare_environment("gemma-2b-40k")
    assert "HF_HUB_OFFLINE" not in os.environ
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    prepare_environment("smoke")
    assert os.environ["HF_HUB_OFFLINE"] == "0"


def test_notebooks_are_told_of_a_refresh_and_of_nothing_else(project, monkeypatch):
    monkeypatch.setenv("ICRM_REFRESH", "1")  # left over in the caller's shell
    path = project / "notebooks" / "01_first.ipynb"
    write_notebook(path, "import os\nprint(os.environ.get('ICRM_REFRESH'))")
    assert run.main(["--only", "01"], root=project) == 0
    assert stdout_of(project / "runs" / "smoke" / "01_first.ipynb") == "None\n"
    assert run.main(["--refresh", "--only", "01"], root=project) == 0
    assert stdout_of(path) == "1\n"


def test_refresh_stores_normalised_outputs_and_is_idempotent(project, capsys):
    path = project / "notebooks" / "01_first.ipynb"
    write_notebook(path, "import sys\nprint('a', flush=True)\nsys.stdout.flush()\nprint('b')", "SEED + 1")
    before = nbformat.read(path, as_version=4)
    assert run.main(["--refresh", "--only", "01"], root=project) == 0
    assert "stored notebooks/01_first.ipynb" in capsys.readouterr().out
    once = path.read_text(encoding="utf-8")
    assert "papermill" not in once
    assert str(project) not in once
    after = nbformat.reads(once, as_version=4)
    assert [cell.id for cell in after.cells] == [cell.id for cell in before.cells]
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert [cell.execution_count for cell in after.cells if cell.cell_type == "code"] == [1, 2, 3]
    assert [output.text for output in after.cells[2].outputs] == ["a\nb\n"]
    assert after.cells[3].outputs[0].data["text/plain"] == "1"
    assert set(after.metadata) == {"kernelspec", "language_info"}
    assert "version" not in after.metadata.language_info
    assert [dict(cell.metadata) for cell in after.cells] == [{}, {"tags": ["parameters"]}, {}, {}]
    assert run.main(["--refresh", "--only", "01"], root=project) == 0
    assert path.read_text(encoding="utf-8") == once


def test_normalise_joins_what_arrived_in_pieces_and_nothing_else():
    def stream(text):
        return new_output("stream", name="stdout", text=text)

    picture = new_output("display_data", data={"image/png": "iVBORw0KGgo="})
    cell = new_code_cell("f()", execution_count=1, outputs=[stream("a"), stream("b\n"), picture, stream("c\n")])
    outputs = normalise(new_notebook(cells=[cell])).cells[0].outputs
    assert [output.get("text", output.output_type) for output in outputs] == ["ab\n", "display_data", "c\n"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("1 / 0", "ZeroDivisionError"), ("import sys\nprint('careful', file=sys.stderr)", "careful")],
)
def test_refresh_keeps_the_stored_notebook_when_it_fails(project, capsys, source, complaint):
    path = project / "notebooks" / "01_first.ipynb"
    write_notebook(path, source)
    before = path.read_bytes()
    assert run.main(["--refresh", "--only", "01"], root=project) == 1
    assert complaint in capsys.readouterr().err
    assert path.read_bytes() == before
