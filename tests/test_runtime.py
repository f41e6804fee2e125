"""Paths that do not depend on where one starts, seeds, versions, and a start cell that names no machine."""

import ast
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from icrm_lib import runtime

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("folder", [".", "tests", "icrm_lib", "runs/smoke/deep"])
def test_root_is_found_from_any_folder_inside(monkeypatch, tmp_path, folder):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "icrm_lib").mkdir()
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert runtime.project_root(tmp_path / folder) == tmp_path.resolve()
    monkeypatch.chdir(tmp_path / folder)
    assert runtime.project_root() == tmp_path.resolve()


def test_another_projects_pyproject_is_not_ours(tmp_path):
    (tmp_path / "icrm_lib").mkdir()
    (tmp_path / "pyproject.toml").touch()
    inner = tmp_path / "vendored"
    inner.mkdir()
    (inner / "pyproject.toml").touch()
    assert runtime.project_root(inner) == tmp_path.resolve()


def test_outside_the_project_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="start from inside the project"):
        runtime.project_root(tmp_path)


def test_relative_paths_count_from_the_root_wherever_one_stands(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT / "tests")
    assert runtime.resolve_path("runs/a.json") == ROOT / "runs/a.json"
    assert runtime.resolve_path(tmp_path) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.resolve_path("~/data.jsonl") == tmp_path / "data.jsonl"


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (ROOT / "runs/smoke/pairs", "runs/smoke/pairs"),
        ("runs/smoke/pairs", "runs/smoke/pairs"),
        ("../shared/data.jsonl", "data.jsonl"),
        (ROOT / "runs/../../elsewhere/data.jsonl", "data.jsonl"),
        ("/elsewhere/data.jsonl", "data.jsonl"),
    ],
)
def test_shown_paths_name_no_folder_outside_the_project(path, shown):
    assert runtime.display_path(path) == shown


def test_showing_a_path_works_outside_the_project(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert runtime.display_path(tmp_path / "cache") == "cache"


def test_seed_fixes_python_numpy_and_torch():
    def draw(seed):
        runtime.seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(()).item()

    first, second, other = draw(3), draw(3), draw(4)
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_versions_name_every_package_that_decides_a_number():
    found = runtime.versions()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert set(found) == {"python", *runtime.PACKAGES}
    assert {"transformers", "trl", "peft", "datasets", "accelerate", "numpy"} <= set(found)


def test_start_prints_profile_device_and_versions_and_no_path(capsys):
    runtime.start("smoke")
    printed = capsys.readouterr().out
    assert printed.startswith("profile smoke on ")
    assert all(f"{name} {number}" in printed for name, number in runtime.versions().items())
    for place in (str(ROOT), str(Path.home()), os.sep):
        assert place not in printed


def test_a_person_watches_a_terminal_or_a_kernel_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("ICRM_UNATTENDED", "1")
    assert not runtime.watched()
    monkeypatch.delenv("ICRM_UNATTENDED")
    assert runtime.watched()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert not runtime.watched()
    monkeypatch.setitem(sys.modules, "ipykernel", runtime)
    assert runtime.watched()


def test_quiet_leaves_the_users_own_choice(monkeypatch):
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    runtime.quiet()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    runtime.quiet()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"


def test_quiet_hides_chosen_warnings_and_no_others():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        runtime.quiet()
        warnings.warn("`gradient_checkpointing` is deprecated and will be removed", FutureWarning, stacklevel=1)
        warnings.warn("invalid value encountered in divide", RuntimeWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == ["invalid value encountered in divide"]


def test_only_commands_are_quiet_when_they_are_imported():
    called = set()
    for path in (ROOT / "icrm_lib").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and ast.unparse(node.value) == "runtime.quiet()":
                called.add(path.parent.name)
    assert called <= {"cli"}
