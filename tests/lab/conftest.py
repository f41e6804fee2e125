"""Workspaces of the lab that several files look at, made once."""

import json
import shutil
from collections import Counter

import pytest
from tiny import micro

from icrm_lib import runtime
from icrm_lib.lab import models, workspace
from icrm_lib.lab.workspace import Workspace

# The function behind each artefact that a model makes, and the module that calls it.
MAKERS = {
    "base_model": (models, "train_language_model"),
    "generator": (models, "fit_generator"),
    "logprobs": (models, "model_scorer"),
    "reward_model": (workspace, "train_reward_model"),
}


@pytest.fixture(scope="session")
def makers():
    return MAKERS


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Folder with every artefact of the micro profile, seed 0."""
    folder = tmp_path_factory.mktemp("made")
    Workspace(micro(), folder=folder).reward_model_folder("icrm")
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copied")


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of what makes artefacts."""
    counter = Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            counter[name] += 1
            return function(*args, **kwargs)

        return call

    for module, name in MAKERS.values():
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return counter


@pytest.fixture(scope="session")
def own_file(tmp_path_factory):
    """72 good rows over 36 prompts, with ratings, and three bad ones."""
    rows = []
    for number in range(72):
        topic = number % 36
        rows.append(
            {
                "prompt": f"What is {topic} plus {topic}? Straße 😀",
                "chosen": f"It is {2 * topic}, as {topic} + {topic} = {2 * topic}. ({number})",
                "rejected": f"I do not know {number}.",
                "chosen_rating": 5 + number % 3,
                "rejected_rating": 2,
            }
        )
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines.insert(3, '{"prompt": "cut off", "chosen": "he')
    lines.insert(9, json.dumps({"prompt": "What?", "chosen": "same", "rejected": "same"}))
    lines.append(json.dumps({"prompt": "What?", "chosen": "no rejected one"}))
    path = tmp_path_factory.mktemp("own") / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def own(own_file, tmp_path_factory):
    """Workspace on that file, with a base model from scratch, its ICRM reward model trained."""
    folder = tmp_path_factory.mktemp("own_runs")
    ws = Workspace(micro(), preferences=own_file, base_model="scratch", folder=folder)
    ws.reward_model_folder("icrm")
    return ws


@pytest.fixture(scope="session")
def lab_root(tmp_path_factory):
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="module")
def own_root(lab_root):
    """Artefacts and records of cells lie in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "project_root", lambda: lab_root)
        yield
