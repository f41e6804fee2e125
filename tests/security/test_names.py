"""A name leads to no other folder, and what is typed reaches no shell, no make and no code."""

import ast
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pandas as pd
import papermill.translators
import pytest
from tiny import micro

from icrm_lib import records, runtime
from icrm_lib.cli import run
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.workspace import Workspace
from icrm_lib.report import load_cells, tables

ROOT = Path(__file__).resolve().parents[2]
MINE = micro("mine", data={"preferences": "own.jsonl"}, generator={"kind": "base"})
OUTSIDE = ("../x", "../../x", "a/../../x", "a/b", "/tmp/x", "..", ".", "", "x\0y")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project; afterwards nothing lies outside of it, nor in it outside of what a run writes."""
    root = tmp_path / "deep" / "project"
    root.mkdir(parents=True)
    monkeypatch.setattr(runtime, "project_root", lambda start=None: root)
    monkeypatch.chdir(root)
    yield root
    inside = {path for name in ("results", "runs", "figures") for path in (root / name).rglob("*")}
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert files <= inside


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_leads_to_no_other_folder(project, name):
    frame = pd.DataFrame({"method": ["m"], "measure": ["a"], "mean": [1.0], "low": [1.0], "high": [1.0]})
    frame = frame.assign(seeds=1, best=False)
    for write in (
        lambda: records.write_record("noun", name, {}, {}),
        lambda: Workspace(replace(MINE, name=name), base_model="scratch"),
        lambda: tables.write(tables.Table(name, "t", "p", {}, {}), frame, project / "figures"),
        lambda: tables.tables_folder(name),
        lambda: load_cells(name),
        lambda: load_cells("lab", purpose=name),
    ):
        with pytest.raises(ValueError, match="must stay in its folder; use a name without slashes"):
            write()
    if name not in ("", ".", ".."):  # those make the files ".json", "..json"
        with pytest.raises(ValueError, match="must stay in its folder"):
            records.write_record(name, "lab", {}, {})
        with pytest.raises(ValueError, match="must stay in its folder"):
            _ = Cell("icrm", 0, changes=((name, 1.0),)).name
    for part in ("method", "generator"):
        with pytest.raises(ValueError, match=f"unknown {part}"):
            Cell(**{"method": "icrm", "seed": 0, part: name})


@pytest.mark.parametrize(
    "source", ["../../x.jsonl", "/etc/../x.jsonl", "a/../../b", "../..", "..", "owner/..", "a\\..\\b.json", "~/x.jsonl"]
)
def test_data_of_any_name_are_recorded_inside_results(project, source):
    path = Workspace(MINE, preferences=source, base_model="scratch").write_record("noun", {})
    assert path.parent == project / "results" / "mine" and path.is_file()


@pytest.mark.parametrize("arguments", [["--profile", "../x"], ["--only", "../../x"], ["--only", "/tmp/x.ipynb"]])
def test_the_runner_takes_known_names_only(arguments, capsys):
    assert run.main(arguments, root=ROOT) == 2
    assert "did you mean" in (error := capsys.readouterr().err) or "known:" in error


@pytest.mark.parametrize(
    "value", ['"; import os #', "'''", '\\"); x = (', "a\nimport os", "{% raw %}", "\u2028import os"]
)
def test_a_parameter_stays_a_value(value):
    code = papermill.translators.PythonTranslator.codify({"NAME": value, "LIST": [value], "MAP": {value: value}})
    body = ast.parse(code).body
    assert [ast.literal_eval(line.value) for line in body] == [value, [value], {value: value}]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("verb", ["run", "plan", "evidence", "refresh"])
@pytest.mark.parametrize("value", ['"; touch x; "', "`touch x`", "$(touch x)", "$(shell touch x)", "a' b", "04,05"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_make_passes_a_value_on_as_it_is(verb, value, by, tmp_path):
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    (tmp_path / ".venv/bin").touch()
    takes = {"plan": ["PROFILE"], "refresh": ["ONLY"], "evidence": ["ONLY", "PROFILE", "ENGINE", "GPUS"]}
    takes = takes.get(verb, ["ONLY", "PROFILE"])
    typed = dict.fromkeys(takes, value)
    arguments = [f"{name}={text}" for name, text in typed.items()] if by == "argument" else []
    environment = os.environ | (typed if by == "environment" else {})
    done = subprocess.run(
        ["make", "-s", verb, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and not (tmp_path / "x").exists(), done.stderr
    assert done.stdout.splitlines().count(value) == len(typed)
