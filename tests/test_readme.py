"""What README.md shows works as it is printed there."""

import json
import re

import numpy as np
import pytest
from tiny import micro

from icrm_lib import runtime

README = (runtime.project_root() / "README.md").read_text(encoding="utf-8")
MICRO = micro("micro_readme", data={"train_pairs": 16, "validation_pairs": 4, "test_pairs": 4})


def snippets():
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_snippets_run_one_after_the_other(tmp_path, monkeypatch, language, capsys):
    rows = language.preference_pairs(24, np.random.default_rng(0))
    keys = ("prompt", "chosen", "rejected")
    lines = [json.dumps({key: row[key] for key in keys}) for row in rows]
    (tmp_path / "preferences.jsonl").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("icrm_lib.lab.workspace.load_profile", lambda name: MICRO)  # the size, and nothing else
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    names: dict = {}
    assert len(snippets()) == 3
    for code in snippets():
        exec(compile(code, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert (tmp_path / "my_reward_model" / "model.safetensors").is_file()
    assert "24" in shown and re.search(r"^ *-?\d\.\d\d  +paper$", shown, re.MULTILINE)
    assert names["model"].score(names["talks"]).shape == (2,)


def test_every_verb_of_the_makefile_is_in_the_readme():
    makefile = (runtime.project_root() / "Makefile").read_text(encoding="utf-8")
    verbs = re.findall(r"^([a-z]+):.*##", makefile, re.MULTILINE)
    assert verbs and not [verb for verb in verbs if f"make {verb}" not in README]


def test_every_path_of_the_tree_exists():
    tree = re.search(r"## What lies where\n\n```\n(.*?)```", README, re.DOTALL)[1]
    paths = [line.split()[0] for line in tree.splitlines() if line.strip()]
    made = {"runs/", "results/"}
    assert len(paths) > 10
    assert not [path for path in paths if path not in made and not (runtime.project_root() / path).exists()]


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_test_that_a_page_names_exists(page):
    """Files, and tests by the beginning of their names."""
    root = runtime.project_root()
    text = (root / page).read_text(encoding="utf-8")
    tests = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in root.glob("tests/**/*.py")}
    names = [name for source in tests.values() for name in re.findall(r"^def (test_\w+)", source, re.MULTILINE)]
    files = re.findall(r"((?:\w+/)*test_\w+\.py)", text)
    assert files and not [file for file in files if not any(f"/{path}".endswith(f"/{file}") for path in tests)]
    said = re.findall(r"\b(test_\w+)(?!\w*\.py)\b", text)
    assert not [start for start in said if not any(name.startswith(start) for name in names)]
