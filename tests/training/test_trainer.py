"""ICRMTrainer against TRL's, what it may touch and depend on, and what it does with numbers that are none."""

from pathlib import Path

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, TrainerCallback
from trl import RewardConfig, RewardTrainer

from icrm_lib.language_model.checkpoints import stop_unless_finite
from icrm_lib.training import ICRMTrainer

BT = {"consistency_weight": 0.0, "sft_weight": 0.0}


@pytest.fixture
def train(make):
    """Train; the weights by name, and the trainer."""

    def train(*args, **options):
        trainer = make(*args, **options)
        trainer.train()
        return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}, trainer

    return train


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("lora", [True, False])
def test_without_our_terms_it_is_trl_to_the_bit(train, pairs, lora):
    (theirs, their_trainer), (ours, trainer) = train(pairs, RewardTrainer, lora=lora), train(pairs, lora=lora, **BT)
    logs = [[e["loss"] for e in x.state.log_history if "loss" in e] for x in (their_trainer, trainer)]
    assert logs[0] == logs[1] and len(logs[1]) == 6
    assert equal(theirs, ours)


@pytest.mark.parametrize("weighting", ["probability", "random_pairs"])
def test_two_runs_are_bitwise_equal_and_another_seed_is_not(train, pairs_with_logprobs, weighting):
    first, second, other = (train(pairs_with_logprobs, seed=seed, weighting=weighting)[0] for seed in (0, 0, 1))
    assert equal(first, second) and not equal(first, other)


def test_random_partners_follow_the_seed(make, pairs_with_logprobs):
    trainer = make(pairs_with_logprobs, weighting="random_pairs")
    trainer.model.eval()  # S stays
    batch = next(iter(trainer.get_train_dataloader()))
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(trainer.compute_loss(trainer.model, dict(batch)).item())
    assert values[0] == values[1] != values[2]


def test_accumulation_equals_one_large_batch(train, pairs):
    """For Bradley-Terry; the consistency term pools tokens and moves S a forward pass, so it differs by design."""
    large, _ = train(pairs, **BT, max_steps=3, per_device_train_batch_size=8)
    small, _ = train(pairs, **BT, max_steps=3, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    torch.testing.assert_close(large, small, rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_changes_nothing(train, pairs_with_logprobs):
    plain, _ = train(pairs_with_logprobs)
    saving, _ = train(pairs_with_logprobs, gradient_checkpointing=True)
    torch.testing.assert_close(plain, saving, rtol=1e-4, atol=1e-6)


def test_padding_and_company_do_not_change_the_loss(make, pairs_with_logprobs):
    trainer = make(pairs_with_logprobs)
    trainer.model.eval()
    rows = [pairs_with_logprobs[i] for i in range(3)]
    alone = trainer.data_collator(rows)
    trainer.data_collator.pad_to_multiple_of = 64
    padded = trainer.data_collator(rows)
    assert padded["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        a, b = (trainer.compute_loss(trainer.model, dict(batch)).item() for batch in (alone, padded))
    assert a == pytest.approx(b, rel=1e-5)


def test_logs_hold_the_parts_of_the_loss(train, pairs_with_logprobs):
    entry = train(pairs_with_logprobs, sft_weight=0.01)[1].state.log_history[0]
    names = {"bt_loss", "consistency_loss", "sft_loss", "accuracy", "margin", "consistency_scale"}
    assert names | {"generator_probability", "token_reward_std"} <= set(entry)
    parts = 0.9 * entry["bt_loss"] + 0.1 * entry["consistency_loss"] + 0.01 * entry["sft_loss"]
    assert entry["loss"] == pytest.approx(parts, abs=2e-4)


def test_the_head_is_trained_even_when_the_adapter_forgets_it(make, pairs_with_logprobs):
    lora = LoraConfig(r=4, target_modules="all-linear", task_type=None)
    trainer = make(pairs_with_logprobs, lora=False, extra={"peft_config": lora})
    assert any("score" in name and value.requires_grad for name, value in trainer.model.named_parameters())
    assert lora.modules_to_save is None  # the caller's configuration stays as it was


def test_a_frozen_head_and_a_plain_config_are_refused(config, make, base_model, tokenizer, pairs_with_logprobs):
    plain = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    frozen = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="modules_to_save"):
        make(pairs_with_logprobs, model=frozen, lora=False)
    arguments = {"train_dataset": pairs_with_logprobs, "processing_class": tokenizer}
    with pytest.raises(TypeError, match="ICRMConfig"):
        ICRMTrainer(str(base_model), config(RewardConfig), **arguments)


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("terms", [{}, BT], ids=["icrm", "bradley_terry"])
def test_what_is_not_finite_stops_the_run_with_its_rows(make, pairs_with_logprobs, what, terms):
    trainer = make(pairs_with_logprobs, **terms)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if what == "loss" and "score.modules_to_save" in name:
                weight.fill_(torch.nan)
            if what == "gradient" and "layers.0.self_attn.q_proj.lora_B" in name:
                weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match=f"the {what} of step 1 is not finite") as error:
        trainer.train()
    (saved,) = Path(trainer.args.output_dir).glob("non_finite_batch-0.safetensors")
    batch = load_file(saved)
    known = {tuple(row["chosen_ids"]): row["line"] for row in pairs_with_logprobs}
    sides = zip(batch["input_ids"][:4], batch["attention_mask"][:4], strict=True)
    rows = [known[tuple(ids[mask.bool()].tolist())] for ids, mask in sides]
    assert len(batch["input_ids"]) == 8
    assert batch["line"].tolist() == rows and f"rows {rows} of the data" in str(error.value)


def test_the_saved_batch_gives_the_same_loss(make, pairs_with_logprobs, tmp_path):
    trainer = make(pairs_with_logprobs, sft_weight=0.1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with pytest.raises(FloatingPointError):
        stop_unless_finite(trainer, torch.tensor(torch.inf), batch, tmp_path)
    saved = load_file(tmp_path / "non_finite_batch-0.safetensors")
    trainer.model.eval()
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, saved) == trainer.compute_loss(trainer.model, batch)


@pytest.mark.slow
def test_the_memory_of_a_thousand_steps_is_flat(train, pairs_with_logprobs):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 100 == 0:
                seen.append(psutil.Process().memory_info().rss / 2**20)

    settings = {"max_steps": 1000, "per_device_train_batch_size": 2, "logging_steps": 50, "sft_weight": 0.01}
    train(pairs_with_logprobs, extra={"callbacks": [Watch()]}, **settings)
    assert len(seen) == 10
    assert max(seen[2:]) - seen[1] < 10, seen  # MiB; between step 200 and 1000
