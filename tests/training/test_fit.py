"""The methods by name: valid settings that reach the trainer, what trains and what stays, and TRL's own as one."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from icrm_lib.methods import METHODS, method_settings
from icrm_lib.profiles import RewardModelSettings, build, known_profiles, load_profile
from icrm_lib.reward_model import RewardModel
from icrm_lib.reward_model.head import reward_head
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.fit import shared_batch, train_reward_model, unsharded_model

TINY = RewardModelSettings(
    lora_rank=2, lora_alpha=4, epochs=1, batch_size=4, learning_rate=1e-2, mlp_size=8, sft_weight=0.01
)
SHARED = {item.name for item in dataclasses.fields(ICRMConfig)} & set(vars(TINY))
MARGINS = np.linspace(0.5, 4, 8)


@pytest.fixture(scope="module")
def rows(rich):
    """Eight pairs (two steps) with every column that a method may read but `margin`."""
    return rich.select(range(8))


@pytest.fixture
def train(base_model, tokenizer, rows, tmp_path):
    """Train by a method's name with some settings changed; the log goes to `tmp_path`."""

    def train(method, bf16=None, **changes):
        settings = dataclasses.replace(method_settings(TINY, method), **changes)
        given = rows.add_column("margin", MARGINS) if settings.margin else rows
        return train_reward_model(base_model, tokenizer, given, settings, folder=tmp_path, seed=0, bf16=bf16)

    return train


def final(folder):
    return json.loads((folder / "log.jsonl").read_text().splitlines()[-1])


def test_a_method_is_a_profile_with_some_settings_changed():
    made = {name: method_settings(TINY, name) for name in METHODS}
    assert len(set(made.values())) == len(METHODS)  # no two names for one thing
    assert made["icrm"] == TINY
    assert made["bt"] == dataclasses.replace(TINY, consistency_weight=0.0, sft_weight=0.0)
    with pytest.raises(ValueError, match="unknown method 'icmr'; did you mean 'icrm'"):
        method_settings(TINY, "icmr")


@pytest.mark.parametrize("profile", known_profiles())
def test_every_method_is_valid_in_every_profile(config, profile):
    own = load_profile(profile).reward_model
    for name, method in METHODS.items():
        settings = build(RewardModelSettings, dataclasses.asdict(own) | method.changes, name)
        assert settings == method_settings(own, name)
        config(**{name: getattr(settings, name) for name in SHARED - {"gradient_checkpointing"}})


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_only_lora_and_the_head_move(train, base_model, tmp_path, method):
    trainer = train(method)
    settings = method_settings(TINY, method)
    assert trainer.state.global_step == 2 and math.isfinite(final(tmp_path)["train_loss"])
    # every setting has reached the trainer; checkpoints are for trainings with a folder for them
    for name in SHARED - {"save_steps", "padding_free", "prefix_sharing"}:
        assert getattr(trainer.args, name) == getattr(settings, name), name
    assert trainer.args.center_rewards_coefficient == (settings.center_rewards or None)
    assert ("margin" in trainer.train_dataset.column_names) == settings.margin
    # the backbone is the base model's
    frozen = AutoModelForCausalLM.from_pretrained(base_model).model.state_dict()
    kept = trainer.model.state_dict()
    for name, value in frozen.items():
        (same,) = (v for k, v in kept.items() if k.replace(".base_layer", "").endswith(f"model.{name}"))
        assert torch.equal(same, value), name
    trained = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    lora = {name for name in trained if "lora_" in name}
    assert trained - lora == {
        name for name, _ in trainer.model.named_parameters() if "score" in name and "original" not in name
    }
    assert len(lora) == (0 if settings.frozen_backbone else 2 * 2 * 7)  # A and B of seven projections in two layers
    assert all(kept[name].abs().sum() > 0 for name in lora if "lora_B" in name)
    assert len(list(reward_head(trainer.model).named_modules())) > 3 or settings.head == "linear"


@pytest.mark.parametrize("method", ["bt", "frozen_mlp"])
def test_the_head_moves_from_where_the_seed_put_it(train, method):
    """Against runs at a vanishing rate, which stay at the start. (A last bias cancels in a difference of rewards.)"""
    heads = []
    for run, rate in enumerate((1e-2, 1e-30, 1e-30)):
        torch.manual_seed(run)  # what was drawn before plays no part
        trainer = train(method, learning_rate=rate)
        heads.append([v for v in reward_head(trainer.model).parameters() if v.requires_grad and v.dim() == 2])
    moved, start, again = heads
    assert len(start) == (1 if method == "bt" else 2)
    assert all(torch.equal(a, b) for a, b in zip(start, again, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(start, moved, strict=True))


def test_a_model_made_here_is_trained_without_a_word(train, caplog):
    train("frozen_mlp")
    assert caplog.records == []


@pytest.mark.parametrize("method", ["bt", "bt_margin", "bt_centered"])
def test_plain_methods_are_trl_to_the_bit(train, config, base_model, tokenizer, rows, method):
    pairs = rows.select_columns(["chosen_ids", "rejected_ids"])
    if method == "bt_margin":
        pairs = pairs.add_column("margin", MARGINS)
    args = config(
        RewardConfig,
        max_steps=-1,
        num_train_epochs=1,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        model_init_kwargs={"dtype": "float32"},
        center_rewards_coefficient=0.01 if method == "bt_centered" else None,
        seed=0,
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=4, target_modules="all-linear")
    theirs = RewardTrainer(str(base_model), args, train_dataset=pairs, processing_class=tokenizer, peft_config=lora)
    theirs.train()
    values = train(method, padding_free=False, prefix_sharing=False).model.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in theirs.model.state_dict().items())


@pytest.mark.parametrize("method", ["icrm", "frozen_mlp", "grm_sft_mlp"])
def test_the_head_trains_in_float32_on_a_bfloat16_backbone(train, tokenizer, rows, tmp_path, method):
    """Adapters are float32 anyway; a bfloat16 head would lose steps smaller than its rounding."""
    trained = train(method, bf16=True)
    dtypes = {value.dtype for value in trained.model.parameters() if value.requires_grad}
    assert dtypes == {torch.float32} and math.isfinite(final(tmp_path)["train_loss"])
    assert trained.model.get_input_embeddings().weight.dtype == torch.bfloat16
    scores = RewardModel(trained.model, tokenizer).score_tokens(rows["chosen_ids"])
    RewardModel(trained.model, tokenizer).save_pretrained(tmp_path / "saved")
    again = RewardModel.from_pretrained(tmp_path / "saved").score_tokens(rows["chosen_ids"])
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(again, scores, atol=0.02)


def test_the_precision_of_a_profile_is_taken_where_none_is_named(train):
    for precision, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        model = train("icrm", precision=precision).model
        assert model.get_input_embeddings().weight.dtype == dtype
    assert not TINY.in_bfloat16(on_gpu=False) and TINY.in_bfloat16(on_gpu=True)


def test_one_call_trains_and_the_result_saves(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    settings = RewardModelSettings(lora_rank=2, lora_alpha=4, epochs=1, batch_size=8)
    trainer = train_reward_model(base_model, tokenizer, pairs_with_logprobs, settings, folder=tmp_path / "run", seed=0)
    RewardModel(trainer.model, tokenizer).save_pretrained(tmp_path / "model")
    assert RewardModel.from_pretrained(tmp_path / "model").model.config.num_labels == 1
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert entries[0]["step"] == 5 and "bt_loss" in entries[0]


def test_a_model_put_together_from_its_adapter_still_knows_the_length_of_its_training(train, tmp_path):
    trainer = train("bt")
    trainer.args.trained_length = 77
    whole = unsharded_model(trainer, dataclasses.replace(TINY, quantization="4bit"), tmp_path)
    assert whole.config.icrm_max_length == 77


def test_qlora_freezes_four_bits_and_saves_a_plain_model(train, tokenizer, rows, tmp_path):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is an optional package")
    settings = dataclasses.replace(TINY, quantization="4bit")
    trainer = train("icrm", quantization="4bit")
    kinds = {type(weight).__name__ for weight in trainer.model.parameters()}
    assert "Params4bit" in kinds
    assert {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad} == {torch.float32}
    RewardModel(unsharded_model(trainer, settings, tmp_path), tokenizer).save_pretrained(tmp_path / "whole")
    whole = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert not hasattr(whole.config, "quantization_config")
    ids = torch.tensor([rows[0]["chosen_ids"]])
    with torch.no_grad():
        ours = whole(ids).logits
        quantized = trainer.model.train()(ids).logits  # its eval mode repacks for sizes larger than this
    assert float(ours) == pytest.approx(float(quantized), abs=0.1)  # four bits against sixteen and more


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "want"),
    [(2, 6, 1, (2, 6)), (6, 4, 2, (3, 4)), (3, 8, 2, (3, 4)), (4, 3, 2, (2, 3)), (2, 6, 4, None)],
)
def test_processes_share_a_step(batch, accumulation, processes, want):
    settings = RewardModelSettings(batch_size=batch, accumulation=accumulation)
    if want is None:
        with pytest.raises(ValueError, match="4 processes cannot share a step of 6 batches of 2 pairs"):
            shared_batch(settings, processes)
    else:
        assert shared_batch(settings, processes) == want
