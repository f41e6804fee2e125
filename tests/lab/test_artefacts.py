"""Artefacts are made when missing, reused when there, never half; what changes makes a new one, comments do not."""

import logging
import os
import shutil

import pytest
import torch
from folders import contents, folders, nouns
from tiny import micro
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from icrm_lib import records
from icrm_lib.lab.artefacts import code_fingerprint
from icrm_lib.lab.workspace import Workspace

MICRO = micro()
NOUNS = {"pairs", "base_model", "generator", "logprobs", "reward_model"}


def test_every_artefact_is_made_once_whole_and_reused(calls, makers, tmp_path):
    first = Workspace(MICRO, folder=tmp_path)
    path = first.reward_model_folder("icrm")
    once = {name: 1 for _, name in makers.values()}
    assert calls == once
    assert nouns(folders(tmp_path)) == NOUNS and len(folders(tmp_path)) == len(NOUNS)
    for folder in map(tmp_path.joinpath, folders(tmp_path)):
        key = records.read_json(folder / records.MANIFEST)["key"]
        assert records.is_sealed(folder, key, verify=True)
    before = contents(tmp_path)
    assert first.reward_model_folder("icrm") == path
    assert Workspace(MICRO, folder=tmp_path).reward_model_folder("icrm") == path
    assert calls == once and contents(tmp_path) == before


def test_notebooks_may_ask_in_any_order(made, calls):
    """Whichever artefact is asked for first, what lies there is found."""
    for ask in (
        lambda ws: ws.pairs,
        lambda ws: ws.base_model,
        lambda ws: ws.generator,
        lambda ws: ws.with_logprobs("train"),
        lambda ws: ws.reward_model("icrm"),
    ):
        ask(Workspace(MICRO, folder=made))
    assert not calls


@pytest.mark.parametrize("noun", sorted(NOUNS - {"pairs"}))
def test_a_lost_artefact_alone_is_made_again_and_is_the_same(copied, calls, makers, noun):
    (lost,) = (path for path in copied.iterdir() if path.name.startswith(noun))
    files = [path for path in lost.iterdir() if path.suffix in {".safetensors", ".arrow"}]
    want = {path.name: path.read_bytes() for path in files}
    assert want
    shutil.rmtree(lost)
    ws = Workspace(MICRO, folder=copied)
    assert ws.with_logprobs("train") is not None and ws.reward_model_folder("icrm").is_dir()
    assert {name: (lost / name).read_bytes() for name in want} == want
    assert calls == {makers[noun][1]: 1}


@pytest.mark.parametrize(
    ("sections", "new"),
    [
        ({"reward_model": {"learning_rate": 1e-3}}, {"reward_model"}),
        ({"reward_model": {"consistency_weight": 0.2}}, {"reward_model"}),
        ({"generator": {"learning_rate": 2e-3}}, {"generator", "logprobs", "reward_model"}),
        ({"generator": {"kind": "base"}}, {"logprobs", "reward_model"}),
        ({"base_model": {"steps": 4}}, NOUNS - {"pairs"}),
        ({"data": {"train_pairs": 25}}, NOUNS - {"base_model"}),
        ({"language": {"preference_noise": 0.0}}, NOUNS),
        ({"generator": {"kind": "base", "temperature": 0.7}}, {"logprobs", "reward_model"}),
        ({"data": {"max_length": 200}}, {"base_model", "generator", "logprobs", "reward_model"}),
    ],
)
def test_a_changed_setting_makes_new_folders_for_what_depends_on_it(copied, sections, new):
    before = contents(copied)
    names = folders(copied)
    Workspace(micro(**sections), folder=copied).reward_model_folder("icrm")
    assert nouns(folders(copied) - names) == new
    assert before.items() <= contents(copied).items()  # the old ones lie there untouched


def test_seeds_of_workspace_and_reward_model_are_two_things(copied):
    names = folders(copied)
    zero, one = (Workspace(MICRO, folder=copied).reward_model_folder("icrm", seed) for seed in (0, 1))
    assert folders(copied) - names == {one.name} and zero.name in names
    heads = [AutoModelForSequenceClassification.from_pretrained(path).score.weight for path in (zero, one)]
    assert not torch.allclose(*heads, atol=1e-3)
    Workspace(MICRO, seed=1, folder=copied).reward_model_folder("icrm", 1)
    assert len(folders(copied)) == len(names) + 1 + len(NOUNS)


@pytest.mark.parametrize(
    ("noun", "error"),
    [
        ("base_model", RuntimeError),
        ("generator", KeyboardInterrupt),
        ("logprobs", RuntimeError),
        ("reward_model", KeyboardInterrupt),
    ],
)
def test_what_dies_half_way_leaves_nothing_and_the_next_call_succeeds(copied, monkeypatch, makers, noun, error):
    (lost,) = (path for path in copied.iterdir() if path.name.startswith(noun))
    shutil.rmtree(lost)
    module, maker = makers[noun]
    function, died = getattr(module, maker), []

    def dies(*args, **kwargs):
        function(*args, **kwargs)
        if "folder" in kwargs:  # half of it lies there
            assert any(kwargs["folder"].iterdir()) and kwargs["folder"] != lost
        died.append(maker)
        raise error

    def ask():
        ws = Workspace(MICRO, folder=copied)
        return ws.with_logprobs("train"), ws.reward_model_folder("icrm")

    monkeypatch.setattr(module, maker, dies)
    names = folders(copied)
    with pytest.raises(error):
        ask()
    assert died == [maker] and folders(copied) == names
    monkeypatch.undo()
    ask()
    assert folders(copied) == names | {lost.name}


def test_other_weights_under_the_same_path_make_new_artefacts(base_model, tmp_path):
    mine = shutil.copytree(base_model, tmp_path / "mine")
    first = Workspace(MICRO, base_model=mine, folder=tmp_path / "runs").reward_model_folder("bt")
    model = AutoModelForCausalLM.from_pretrained(mine)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(mine)
    assert Workspace(MICRO, base_model=mine, folder=tmp_path / "runs").reward_model_folder("bt") != first


def test_another_generator_under_the_same_name_makes_another_reward_model(tmp_path):
    own = Workspace(MICRO, folder=tmp_path / "own")
    named = tmp_path / "named"
    shutil.copytree(own.base_model, named)
    shutil.copytree(own.folder, tmp_path / "runs")
    options = {"kind": "base", "model": str(named)}
    first = Workspace(micro(generator=options), folder=tmp_path / "runs").reward_model_folder("icrm")
    assert Workspace(micro(generator=options), folder=tmp_path / "runs").reward_model_folder("icrm") == first
    model = AutoModelForCausalLM.from_pretrained(named)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(named)
    assert Workspace(micro(generator=options), folder=tmp_path / "runs").reward_model_folder("icrm") != first


def test_log_messages_say_what_is_made_and_name_no_machine(copied, caplog):
    shutil.rmtree(Workspace(MICRO, folder=copied).reward_model_folder("icrm"))
    with caplog.at_level(logging.INFO, logger="icrm_lib"):
        Workspace(MICRO, folder=copied).reward_model_folder("icrm")
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("making reward_model-") for line in said) == 1
    assert any(line.startswith("reusing base_model-") for line in said)
    assert not any(str(copied) in line or os.sep in line for line in said)


FILES = {
    "__init__": "",
    "maker": '"""Makes."""\nimport numpy\nfrom kit.steps import go\n\ndef make():\n    """Do."""\n    return go()\n',
    "steps": "from kit.room import walk\n\n\ndef go():\n    from kit.late import wait\n    return walk(), wait()\n",
    "room/__init__": '"""A room."""\nfrom kit.room.floor import walk\n',
    "room/floor": "def walk():\n    return 1  # once\n",
    "late": "def wait():\n    return 1\n",
    "stranger": "def other():\n    return 1\n",
}


@pytest.fixture
def fingerprint(tmp_path):
    """The fingerprint of `maker` in a small package, with some files changed."""

    def of(place="kit", **changes):
        for name, text in {**FILES, **{name.replace("__", "/"): text for name, text in changes.items()}}.items():
            path = tmp_path / place / "kit" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return code_fingerprint("kit.maker", tmp_path / place / "kit")

    return of


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("maker", '"""Makes."""', '"""Makes what is asked."""  # and why'),
        ("maker", '"""Do."""\n    ', ""),
        ("room__floor", "  # once", ""),
        ("room__floor", "return 1", "return (1)"),
        ("stranger", "return 1", "return 2"),
    ],
)
def test_a_comment_a_docstring_layout_and_strangers_change_nothing(fingerprint, name, old, new):
    text = FILES[name.replace("__", "/")]
    assert old in text
    assert fingerprint("changed", **{name: text.replace(old, new)}) == fingerprint()


@pytest.mark.parametrize("name", ["maker", "steps", "late", "room__floor"])
def test_other_code_counts_through_every_chain(fingerprint, name):
    text = FILES[name.replace("__", "/")].replace("return ", "return 0 + ")
    assert fingerprint("changed", **{name: text}) != fingerprint()


def test_the_code_of_no_module_of_the_kit_has_no_hash():
    with pytest.raises(ValueError, match="no module 'functools' in icrm_lib"):
        code_fingerprint("functools")
