"""ICRMTrainer against TRL's, its loss against the formulas, its scale across checkpoints, and what it may touch."""

import dataclasses
import json
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer

from icrm_lib.objectives import bradley_terry_loss, consistency_terms
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.reward_model import RewardModel
from icrm_lib.training import (
    METHODS,
    ConsistencyScale,
    ICRMConfig,
    ICRMTrainer,
    load_lm_head,
    method_settings,
    train_reward_model,
)

SMALL = {
    "per_device_train_batch_size": 4,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_length": None,
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "SEQ_CLS"}


def make(base_model, tokenizer, dataset, folder, trainer_class=ICRMTrainer, lora=True, extra=None, **settings):
    config = RewardConfig if trainer_class is RewardTrainer else ICRMConfig
    return trainer_class(
        str(base_model),
        config(output_dir=str(folder), **(SMALL | settings)),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA) if lora else None,
        **(extra or {}),
    )


def weights(trainer):
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("lora", [True, False])
def test_without_our_terms_it_is_trl_to_the_bit(base_model, tokenizer, pairs, tmp_path, lora):
    theirs = make(base_model, tokenizer, pairs, tmp_path / "a", RewardTrainer, lora=lora)
    ours = make(base_model, tokenizer, pairs, tmp_path / "b", lora=lora, consistency_weight=0, sft_weight=0)
    theirs.train()
    ours.train()
    assert losses(ours) == losses(theirs) and len(losses(ours)) == 6
    for name, value in weights(theirs).items():
        assert torch.equal(value, weights(ours)[name]), name


def test_two_runs_are_bitwise_equal_and_another_seed_is_not(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    runs = [
        make(base_model, tokenizer, pairs_with_logprobs, tmp_path / str(i), seed=s) for i, s in enumerate((0, 0, 1))
    ]
    for run in runs:
        run.train()
    first, second, other = map(weights, runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def by_hand(trainer, batch, lm_head):
    """The whole loss from the model's plain outputs and the formulas; S after one update."""
    args, mask = trainer.args, batch["response_mask"]
    inner = trainer.model.get_base_model()
    ids = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    hidden = inner.model(**ids).last_hidden_state
    rewards = inner.score(hidden).squeeze(-1)
    last = batch["attention_mask"].sum(1) - 1
    closing = rewards[torch.arange(len(last)), last]
    half = len(last) // 2
    term, scale = consistency_terms(rewards, mask, batch["token_probs"])
    s = 0.95 * 0.5 + 0.05 * scale
    text = 0.0
    for row in range(half):
        where = [t for t in range(1, mask.shape[1]) if mask[row, t]]
        logits = (hidden[row, [t - 1 for t in where]] @ lm_head.T).log_softmax(-1)
        text -= logits[range(len(where)), batch["input_ids"][row, where]].mean() / half
    lam = args.consistency_weight
    loss_bt = bradley_terry_loss(closing[:half], closing[half:])
    return args.sft_weight * text + lam * term / s + (1 - lam) * loss_bt


@pytest.mark.parametrize("sft_weight", [0.0, 0.5])
def test_loss_and_gradient_equal_the_formulas(base_model, tokenizer, pairs_with_logprobs, tmp_path, sft_weight):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path, sft_weight=sft_weight, consistency_weight=0.3)
    with torch.no_grad():  # LoRA starts at zero: give it something to do
        for name, value in trainer.model.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.1)
    lm_head = AutoModelForCausalLM.from_pretrained(base_model).lm_head.weight.detach()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    want = by_hand(trainer, batch, lm_head)
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    want_gradient = torch.autograd.grad(want, trained)
    got = trainer.compute_loss(trainer.model, dict(batch))
    got_gradient = torch.autograd.grad(got, trained)
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    for a, b in zip(got_gradient, want_gradient, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_padding_and_company_do_not_change_the_loss(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path)
    trainer.model.eval()
    rows = [pairs_with_logprobs[i] for i in range(3)]
    alone = trainer.data_collator(rows)
    trainer.data_collator.pad_to_multiple_of = 64
    padded = trainer.data_collator(rows)
    assert padded["input_ids"].shape[1] > alone["input_ids"].shape[1]
    with torch.no_grad():
        a, b = (trainer.compute_loss(trainer.model, dict(batch)).item() for batch in (alone, padded))
    assert a == pytest.approx(b, rel=1e-5)


def test_collator_marks_the_response_and_its_closing_token(tokenizer, pairs_with_logprobs, base_model, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path)
    batch = trainer.data_collator([pairs_with_logprobs[i] for i in range(4)])
    for row in range(8):
        source = pairs_with_logprobs[row % 4]
        side = "chosen" if row < 4 else "rejected"
        start, ids = source["prompt_length"], source[f"{side}_ids"]
        assert batch["input_ids"][row][batch["response_mask"][row]].tolist() == ids[start:]
        assert ids[-1] == tokenizer.eos_token_id
        probs = batch["token_probs"][row]
        want = torch.tensor(source[f"{side}_logprobs"]).exp()
        torch.testing.assert_close(probs[batch["response_mask"][row]], want)
        assert (probs[~batch["response_mask"][row]] == 0).all()


def test_only_lora_and_the_head_move(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path, sft_weight=0.1)
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if "lora_" in n or ("score" in n and "modules_to_save" in n)}
    assert any("score" in name for name in moved)


def test_the_head_is_trained_even_when_the_adapter_forgets_it(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    lora = LoraConfig(**(LORA | {"task_type": None}))
    trainer = ICRMTrainer(
        str(base_model),
        ICRMConfig(output_dir=str(tmp_path), **SMALL),
        train_dataset=pairs_with_logprobs,
        processing_class=tokenizer,
        peft_config=lora,
    )
    assert any("score" in name and value.requires_grad for name, value in trainer.model.named_parameters())
    assert lora.modules_to_save is None  # the caller's configuration stays as it was


def test_scale_follows_its_formula_and_evaluation_leaves_it_alone(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path)
    trainer.model.eval()
    batch = trainer.data_collator([pairs_with_logprobs[i] for i in range(4)])
    trainer.compute_loss(trainer.model, dict(batch))
    assert trainer.scale.value == 0.5
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch))
    with torch.no_grad():
        ids = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        inner = trainer.model.get_base_model()
        rewards = inner.score(inner.model(**ids).last_hidden_state).squeeze(-1)
    _, scale = consistency_terms(rewards, batch["response_mask"], batch["token_probs"])
    assert trainer.scale.value.item() == pytest.approx(0.95 * 0.5 + 0.05 * scale.item(), rel=1e-6)


def test_resuming_gives_the_weights_and_scale_of_an_unbroken_run(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = make(base_model, tokenizer, pairs_with_logprobs, tmp_path / "whole", **settings)
    whole.train()
    state = json.loads((tmp_path / "whole/checkpoint-3/trainer_state.json").read_text())
    stored = state["stateful_callbacks"]["ConsistencyScale"]["attributes"]["value"]
    assert stored != 0.5 and stored != whole.scale.value.item()
    resumed = make(base_model, tokenizer, pairs_with_logprobs, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    assert resumed.scale.value.item() == whole.scale.value.item()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_checkpoint_without_a_scale_is_refused(base_model, tokenizer, pairs, pairs_with_logprobs, tmp_path):
    plain = make(base_model, tokenizer, pairs, tmp_path / "trl", RewardTrainer, save_strategy="steps", save_steps=3)
    plain.train()
    ours = make(base_model, tokenizer, pairs_with_logprobs, tmp_path / "icrm")
    with pytest.raises(ValueError, match="no consistency scale"):
        ours.train(resume_from_checkpoint=str(tmp_path / "trl/checkpoint-3"))


def test_accumulation_equals_one_large_batch(base_model, tokenizer, pairs, tmp_path):
    """For Bradley-Terry; the consistency term pools tokens and moves S a forward pass, so it differs by design."""
    settings = {"consistency_weight": 0, "sft_weight": 0, "max_steps": 3}
    large = make(base_model, tokenizer, pairs, tmp_path / "a", per_device_train_batch_size=8, **settings)
    small = make(
        base_model,
        tokenizer,
        pairs,
        tmp_path / "b",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
        **settings,
    )
    large.train()
    small.train()
    for name, value in weights(large).items():
        torch.testing.assert_close(value, weights(small)[name], rtol=1e-3, atol=1e-4)


def test_gradient_checkpointing_changes_nothing(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    plain = make(base_model, tokenizer, pairs_with_logprobs, tmp_path / "a")
    saving = make(base_model, tokenizer, pairs_with_logprobs, tmp_path / "b", gradient_checkpointing=True)
    plain.train()
    saving.train()
    for name, value in weights(plain).items():
        torch.testing.assert_close(value, weights(saving)[name], rtol=1e-4, atol=1e-6)


def test_raw_conversations_are_tokenised_and_scored_by_the_generator(base_model, tokenizer, language, tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": language.prompts[i]}],
            "chosen": [{"role": "assistant", "content": f"good answer {i}"}],
            "rejected": [{"role": "assistant", "content": f"bad reply number {i}"}],
        }
        for i in range(8)
    ]
    calls = []

    def add_logprobs(dataset, given):
        calls.append(given)

        def constant(row):
            lengths = [len(row[name]) - row["prompt_length"] for name in ("chosen_ids", "rejected_ids")]
            return {"chosen_logprobs": [-1.0] * lengths[0], "rejected_logprobs": [-1.0] * lengths[1]}

        return dataset.map(constant)

    trainer = make(
        base_model, tokenizer, Dataset.from_list(rows), tmp_path, max_steps=2, extra={"add_logprobs": add_logprobs}
    )
    trainer.train()
    assert len(calls) == 1 and len(trainer.train_dataset) == 8
    entry = next(e for e in trainer.state.log_history if "generator_probability" in e)
    assert entry["generator_probability"] == pytest.approx(math.exp(-1), rel=1e-5)


def test_logs_hold_the_parts_of_the_loss(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path, sft_weight=0.01)
    trainer.train()
    entry = trainer.state.log_history[0]
    names = {"bt_loss", "consistency_loss", "sft_loss", "accuracy", "margin", "consistency_scale"}
    assert names | {"generator_probability", "token_reward_std"} <= set(entry)
    parts = 0.9 * entry["bt_loss"] + 0.1 * entry["consistency_loss"] + 0.01 * entry["sft_loss"]
    assert entry["loss"] == pytest.approx(parts, abs=2e-4)


def test_missing_probabilities_are_an_error_that_names_the_remedy(base_model, tokenizer, pairs, tmp_path):
    with pytest.raises(ValueError, match="cached_logprobs"):
        make(base_model, tokenizer, pairs, tmp_path)
    assert make(base_model, tokenizer, pairs, tmp_path, weighting="uniform").train_dataset is not None


def test_uniform_weighting_needs_no_generator_and_differs(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path / "a", weighting="uniform")
    trainer.train()
    weighted = make(base_model, tokenizer, pairs_with_logprobs, tmp_path / "b")
    weighted.train()
    assert losses(trainer) != losses(weighted)


def test_ratings_become_a_margin_only_where_trl_would_see_one(base_model, tokenizer, language, tmp_path):
    """Columns that look like ratings must not change the Bradley-Terry term: TRL subtracts a column `margin` alone."""
    rows = [
        {
            "prompt": [{"role": "user", "content": language.prompts[i]}],
            "chosen": [{"role": "assistant", "content": f"good answer {i}"}],
            "rejected": [{"role": "assistant", "content": f"bad reply number {i}"}],
            "score_chosen": 9.0,
            "score_rejected": 2.0,
        }
        for i in range(4)
    ]
    rated = make(base_model, tokenizer, Dataset.from_list(rows), tmp_path, weighting="uniform")
    assert "margin" not in rated.train_dataset.column_names
    asked = [{**row, "margin": 7.0} for row in rows]
    given = make(base_model, tokenizer, Dataset.from_list(asked), tmp_path, weighting="uniform")
    assert given.train_dataset["margin"][:] == [7.0] * 4


def test_padding_token_of_the_arguments_is_used_everywhere_or_refused(base_model, tokenizer, pairs, tmp_path):
    saved = AutoTokenizer.from_pretrained(base_model)
    trainer = make(base_model, saved, pairs, tmp_path, weighting="uniform", pad_token="<unk>")
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    assert trainer.data_collator.pad_token_id == trainer.model.config.pad_token_id == unknown
    again = AutoTokenizer.from_pretrained(base_model)
    with pytest.raises(ValueError, match="closes a turn"):
        make(base_model, again, pairs, tmp_path, weighting="uniform", pad_token="<eos>")


def test_log_probabilities_of_other_data_are_refused(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path)
    row = dict(pairs_with_logprobs[0])
    row["chosen_logprobs"] = row["chosen_logprobs"][:-1]
    with pytest.raises(ValueError, match="belong to other data"):
        trainer.data_collator([row, pairs_with_logprobs[1]])


def test_a_frozen_head_and_a_plain_config_are_refused(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    plain = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    frozen = get_peft_model(plain, LoraConfig(r=2, target_modules=["q_proj"]))
    arguments = {"train_dataset": pairs_with_logprobs, "processing_class": tokenizer}
    with pytest.raises(ValueError, match="modules_to_save"):
        ICRMTrainer(frozen, ICRMConfig(output_dir=str(tmp_path), **SMALL), **arguments)
    with pytest.raises(TypeError, match="ICRMConfig"):
        ICRMTrainer(str(base_model), RewardConfig(output_dir=str(tmp_path), **SMALL), **arguments)


def test_training_again_starts_the_scale_afresh(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path, max_steps=2, learning_rate=0.0)
    trainer.train()
    first = trainer.scale.value.item()
    trainer.train()
    assert trainer.scale.value.item() == pytest.approx(first, rel=1e-5)  # the model did not move, so W is the same


def test_the_head_trains_in_float32(base_model, tokenizer, pairs_with_logprobs, tmp_path, monkeypatch):
    """Adapters are float32 anyway; a bfloat16 head would lose steps smaller than its rounding."""
    settings = RewardModelSettings(lora_rank=2, lora_alpha=4, epochs=1, batch_size=24)
    half = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1, dtype=torch.bfloat16)
    monkeypatch.setattr("trl.trainer.reward_trainer.create_model_from_path", lambda *args, **kwargs: half)
    trained = train_reward_model(
        base_model, tokenizer, pairs_with_logprobs, settings, folder=tmp_path, seed=0, max_length=None, bf16=True
    )
    dtypes = {value.dtype for value in trained.model.parameters() if value.requires_grad}
    assert dtypes == {torch.float32}
    assert next(trained.model.get_base_model().model.parameters()).dtype == torch.bfloat16


def test_untied_lm_head_is_read_from_the_checkpoint(tokenizer, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=50, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "causal")
    assert torch.equal(load_lm_head(str(tmp_path / "causal")), model.lm_head.weight)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "causal", num_labels=1).save_pretrained(
        tmp_path / "classifier"
    )
    with pytest.raises(ValueError, match="lm_head"):
        load_lm_head(str(tmp_path / "classifier"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"consistency_weight": 1.0}, "consistency_weight"),
        ({"consistency_weight": -0.1}, "consistency_weight"),
        ({"sft_weight": -1.0}, "sft_weight"),
        ({"weighting": "unifrom"}, "uniform"),
        ({"form": "mutual"}, "mutual_bce"),
        ({"centering": "respones"}, "response"),
        ({"scale_decay": 1.0}, "scale_decay"),
        ({"scale_start": 0.0}, "scale_start"),
    ],
)
def test_bad_settings_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        ICRMConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, **change)


def test_scale_state_survives_json():
    scale = ConsistencyScale()
    for value in (0.1, 0.9, 0.3):
        scale.update(torch.tensor(value))
    stored = json.loads(json.dumps(scale.state()))
    assert torch.equal(torch.tensor(stored["attributes"]["value"]), scale.value)


def test_methods_are_named():
    settings = RewardModelSettings()
    assert method_settings(settings, "bt").consistency_weight == 0.0
    assert set(METHODS["bt"]) <= {item.name for item in dataclasses.fields(settings)}
    with pytest.raises(ValueError, match="icrm"):
        method_settings(settings, "icmr")


def test_one_call_trains_and_the_result_saves(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    settings = RewardModelSettings(lora_rank=2, lora_alpha=4, epochs=1, batch_size=8)
    trainer = train_reward_model(base_model, tokenizer, pairs_with_logprobs, settings, folder=tmp_path / "run", seed=0)
    RewardModel(trainer.model, tokenizer).save_pretrained(tmp_path / "model")
    assert RewardModel.from_pretrained(tmp_path / "model").model.config.num_labels == 1
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert entries[0]["step"] == 5 and "bt_loss" in entries[0]
