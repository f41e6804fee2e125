"""The base model of a workspace: pre-trained on the testbed, from scratch, or somebody's own."""

import os
import shutil
from collections import Counter

import numpy as np
from folders import contents, conversations, folders, nouns
from tiny import micro
from transformers import AutoModelForCausalLM

from icrm_lib import runtime
from icrm_lib.lab import base_model as base_models
from icrm_lib.lab.base_model import testbed_corpus as corpus_of
from icrm_lib.lab.workspace import Workspace

MICRO = micro()


def test_the_pretraining_corpus_has_the_form_of_the_pairs(made):
    ws = Workspace(MICRO, folder=made)
    rows = corpus_of(ws._data, 400)
    assert len(rows) >= 400 and set(rows["prompt_length"]) == {1}
    asked = []
    for ids in rows["input_ids"]:
        assert ids[-1] == ws.tokenizer.eos_token_id
        probs = ws.language.token_probs(ids)  # raises for what the language does not say
        asked.append(tuple(ids[: int((probs == 1).argmin())]))
    assert len(set(asked)) == len(ws.language.prompts)
    assert len(set(asked[:64])) > 40  # mixed: a batch holds many prompts


def test_the_scratch_model_learns_prompts_too(own, own_file, monkeypatch, tmp_path):
    train_language_model, given = base_models.train_language_model, []

    def note(model, dataset, **kwargs):
        given.append(dataset)
        return train_language_model(model, dataset, **kwargs)

    monkeypatch.setattr(base_models, "train_language_model", note)
    assert Workspace(MICRO, preferences=own_file, base_model="scratch", folder=tmp_path).base_model
    (rows,) = given
    assert set(rows["prompt_length"]) == {1}  # all but BOS is predicted
    both = [*own.tokenized["train"]["chosen_ids"], *own.tokenized["train"]["rejected_ids"]]
    assert Counter(map(tuple, rows["input_ids"])) == Counter(map(tuple, both))


def test_the_scratch_model_is_of_the_profiles_size(own):
    config = AutoModelForCausalLM.from_pretrained(own.base_model).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 1, 2)
    assert 262 < config.vocab_size <= 400 and config.vocab_size == len(own.tokenizer)
    assert config.max_position_embeddings == 256


def test_another_file_makes_another_scratch_model(own, own_file, tmp_path):
    changed = tmp_path / "other.jsonl"
    text = own_file.read_text(encoding="utf-8").replace("It is", "That makes")
    changed.write_text(text, encoding="utf-8")
    other = Workspace(MICRO, preferences=changed, base_model="scratch", folder=own.folder)
    assert other.base_model != own.base_model
    same = tmp_path / "same.jsonl"
    shutil.copy(own_file, same)
    moved = Workspace(MICRO, preferences=same, base_model="scratch", folder=own.folder)
    assert moved.base_model == own.base_model


def test_a_local_directory_is_the_base_model(base_model, own_file, tmp_path):
    ws = Workspace(MICRO, preferences=own_file, base_model=base_model, folder=tmp_path)
    assert ws.base_model == str(base_model)
    relative = os.path.relpath(base_model, runtime.project_root())
    path = Workspace(MICRO, base_model=relative, folder=tmp_path).base_model
    assert os.path.samefile(path, base_model) and os.path.isabs(path)


def test_a_local_base_model_is_fitted_trained_and_left_alone(base_model, calls, tmp_path):
    before = contents(base_model)
    ws = Workspace(MICRO, base_model=base_model, folder=tmp_path)
    model = ws.reward_model("icrm")
    scores = model.score(conversations(ws.pairs["test"], "chosen"))
    assert model.model.config.hidden_size == 32 and np.isfinite(scores).all()
    assert (
        nouns(folders(tmp_path)) == {"pairs", "generator", "logprobs", "reward_model"}
        and calls["train_language_model"] == 0
    )
    assert contents(base_model) == before


def test_a_hub_id_is_passed_on(tmp_path):
    assert Workspace(MICRO, base_model="owner/name", folder=tmp_path).base_model == "owner/name"
    assert folders(tmp_path) == set()
