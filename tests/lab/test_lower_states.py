"""Frozen lower layers in a workspace: one pass serves training and generator, and whole models come out."""

import numpy as np
import pytest
from folders import conversations, folders
from tiny import micro
from transformers import AutoConfig

from icrm_lib.lab import models
from icrm_lib.lab.artefacts import model_path
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model import smollm2
from icrm_lib.reward_model import RewardModel

FROZEN = {
    "base_model": {"layers": 3},
    "generator": {"kind": "base"},
    "reward_model": {"frozen_layers": 2, "frozen_states": "float32"},
}


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return Workspace(micro(**FROZEN), folder=tmp_path_factory.mktemp("frozen"))


def test_one_pass_serves_training_and_generator(frozen, monkeypatch):
    monkeypatch.setattr(models, "model_scorer", lambda *args, **options: pytest.fail("the generator was asked"))
    model = frozen.reward_model("icrm")
    assert {name for name in folders(frozen.folder) if name.startswith("states")}
    monkeypatch.setattr(models, "states_reader", lambda *args, **options: pytest.fail("the pass was made again"))
    folder = frozen.reward_model_folder("bt")
    assert AutoConfig.from_pretrained(folder).num_hidden_layers == 3
    test = conversations(frozen.pairs["test"], "chosen")
    assert np.std(model.score(test)) > 0 and np.std(RewardModel.from_pretrained(folder).score(test)) > 0


def test_the_answers_are_the_generator_s_own(frozen, tmp_path):
    own = Workspace(micro(generator={"kind": "base"}), base_model=frozen.base_model, folder=tmp_path)
    assert not own.profile.passes_once and frozen.profile.passes_once
    pairs = frozen.tokenized["train"]
    one, other = frozen.add_logprobs(pairs), own.add_logprobs(pairs)
    for ours, theirs in zip(one["chosen_logprobs"], other["chosen_logprobs"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_states_that_are_not_kept_leave_the_same_model(frozen):
    changed = FROZEN | {"reward_model": {"frozen_layers": 2, "frozen_states": "none"}}
    each_time = Workspace(micro(**changed), folder=frozen.folder)
    assert each_time.lower_states(each_time.profile.reward_model, each_time.tokenized["train"]) is None
    test = conversations(frozen.pairs["test"], "chosen")
    scores = [ws.reward_model("icrm").score(test) for ws in (frozen, each_time)]
    np.testing.assert_allclose(*scores, atol=1e-4)


def test_the_pre_trained_model_must_have_been_made(tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2.runtime, "project_root", lambda: tmp_path)
    with pytest.raises(ValueError, match="base model 'smollm2' is not there yet.*`make real` once"):
        model_path("smollm2")
    with pytest.raises(ValueError, match="`make real` once"):
        _ = Workspace(micro(), base_model="smollm2", preferences="mine.jsonl", folder=tmp_path).tokenizer
