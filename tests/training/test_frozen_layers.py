"""Frozen lower layers run once: training is the same as with them run each time, and a whole model comes out."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from icrm_lib.generator import cached_states, states_reader
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.scratch import small_llama
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.reward_model import RewardModel
from icrm_lib.training.fit import train_reward_model

LAYERS = 2
SETTINGS = RewardModelSettings(
    lora_rank=2,
    lora_alpha=4,
    epochs=1,
    batch_size=4,
    accumulation=2,
    learning_rate=1e-2,
    sft_weight=0.1,
    consistency_weight=0.3,
    frozen_layers=LAYERS,
)
LAYOUTS = {
    "padded": {"padding_free": False},
    "packed": {"padding_free": True, "prefix_sharing": False},
    "shared": {"padding_free": True, "prefix_sharing": True},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """Directory of a random model of three layers."""
    folder = tmp_path_factory.mktemp("three_layers")
    small_llama(tokenizer, hidden_size=32, layers=3, heads=2, max_length=256, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(rich):
    return rich.select(range(16))


@pytest.fixture(scope="module")
def states_of(base, tokenizer, tmp_path_factory):
    """Pass rows through the lower layers of the base model."""

    def states_of(*parts, layers=LAYERS, state_type="float32"):
        def reader():
            return states_reader(load_causal_lm(base, device="cpu"), layers, tokenizer.pad_token_id)

        folder = tmp_path_factory.mktemp("states")
        return cached_states(parts, reader, folder, {}, layers=layers, state_type=state_type)

    return states_of


@pytest.fixture
def train(base, tokenizer, rows, tmp_path):
    def train(states=None, *, rows=rows, eval_dataset=None, name="", **changes):
        settings = dataclasses.replace(SETTINGS, **changes)
        options = {"folder": tmp_path / (name or str(states is not None)), "seed": 0, "eval_dataset": eval_dataset}
        return train_reward_model(base, tokenizer, rows, settings, states=states, **options)

    return train


def trained(trainer):
    return {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_from_kept_states_is_the_plain_one(train, rows, states_of, layout):
    plain, fast = train(**LAYOUTS[layout]), train(states_of(rows), **LAYOUTS[layout])
    assert fast.state.global_step == 2
    ours, theirs = trained(fast), trained(plain)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("changes", [{"consistency_weight": 0.0, "sft_weight": 0.0}, {"text_form": "grm_dpo_noref"}])
def test_so_it_is_without_terms_and_where_the_text_term_reads_all_rows(train, rows, states_of, changes):
    plain, fast = (train(states, padding_free=False, **changes) for states in (None, states_of(rows)))
    for name, weight in trained(fast).items():
        torch.testing.assert_close(weight, trained(plain)[name], rtol=0, atol=1e-5, msg=name)


def test_the_lower_layers_do_not_run(train, rows, states_of, monkeypatch):
    ran = []
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward = LlamaDecoderLayer.forward
    monkeypatch.setattr(
        LlamaDecoderLayer,
        "forward",
        lambda self, *args, **kwargs: ran.append(self.self_attn.layer_idx) or forward(self, *args, **kwargs),
    )
    states = states_of(rows)
    ran.clear()
    train(states)
    assert set(ran) == {2}


def test_only_upper_layers_and_the_head_have_trained_weights(train):
    names = trained(train())
    assert any(".layers.2." in name for name in names) and any("score" in name for name in names)
    assert not any(f".layers.{layer}." in name for name in names for layer in range(LAYERS))


def test_gradient_checkpointing_changes_nothing(train, rows, states_of):
    states = states_of(rows)
    once, again = train(states), train(states, gradient_checkpointing=True, name="checkpointed")
    for name, weight in trained(again).items():
        torch.testing.assert_close(weight, trained(once)[name], rtol=0, atol=1e-6, msg=name)


def test_what_is_saved_is_a_whole_ordinary_model(train, rows, states_of, tokenizer, tmp_path):
    trainer = train(states_of(rows))
    conversations = [[{"role": "user", "content": "Which town?"}, {"role": "assistant", "content": "The third."}]]
    merged = RewardModel(trainer.model.merge_and_unload(), tokenizer)
    scores = merged.score(conversations)
    merged.save_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path / "saved").score(conversations), scores, atol=1e-6)
    assert json.loads((tmp_path / "saved/config.json").read_text())["num_hidden_layers"] == 3


def test_evaluation_reads_states_too_and_misses_none(train, rich, rows, states_of):
    held_out = rich.select(range(16, 24))
    trainer = train(states_of(rows, held_out), eval_dataset=held_out)
    plain = train(eval_dataset=held_out, name="plain")
    losses = [[entry["eval_loss"] for entry in t.state.log_history if "eval_loss" in entry] for t in (trainer, plain)]
    assert losses[0] and losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[0][-1], abs=1e-6)
    with pytest.raises(ValueError, match="no hidden states kept"):
        train(states_of(rows), eval_dataset=held_out, name="missing")


def test_half_precision_states_come_close(train, rows, states_of):
    states = states_of(rows, state_type="float16")
    assert states.states.dtype == np.float16
    losses = [t.state.log_history[-1]["train_loss"] for t in (train(states), train(name="plain"))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2) and losses[0] != losses[1]


def test_states_of_another_depth_and_too_many_layers_are_refused(train, rows, states_of):
    with pytest.raises(ValueError, match="those after 1 layers, and frozen_layers is 2"):
        train(states_of(rows, layers=1))
    with pytest.raises(ValueError, match="frozen_layers is 3 and the model has 3 layers.*give at most 2"):
        train(frozen_layers=3)
    with pytest.raises(ValueError, match="set frozen_states to none"):
        train(states_of(rows), quantization="4bit")
