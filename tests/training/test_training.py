"""ICRMTrainer against TRL's, its loss against the formulas, its scale across checkpoints, and what it may touch."""

import json
import math
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer

from icrm_lib.generator import model_scorer
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import stop_unless_finite
from icrm_lib.objectives import CENTERINGS, FORMS, bradley_terry_loss, consistency_terms
from icrm_lib.preferences import LABEL_KEYS
from icrm_lib.profiles import RewardModelSettings, options
from icrm_lib.training.collation import REFERENCE_COLUMNS, STEP_COLUMNS
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.scale import ConsistencyScale
from icrm_lib.training.text import load_lm_head
from icrm_lib.training.trainer import ICRMTrainer

LOSSES, TEXT_FORMS, WEIGHTINGS = (options(RewardModelSettings, name) for name in ("loss", "text_form", "weighting"))
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


def test_tied_lm_head_is_read_from_the_checkpoint_where_no_process_has_it_whole(base_model):
    model = AutoModelForCausalLM.from_pretrained(base_model)
    assert torch.equal(load_lm_head(str(base_model), tied=True), model.get_input_embeddings().weight)
    with pytest.raises(ValueError, match="no lm_head.weight"):
        load_lm_head(str(base_model))


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
        ({"loss": "outcomes"}, "did you mean 'outcome'"),
        ({"text_form": "grm_dpo_no_ref"}, "did you mean 'grm_dpo_noref'"),
        ({"weighting": "entropies"}, "did you mean 'entropy'"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"positive_weight": -1.0}, "positive_weight"),
        ({"text_form": "grm_sft", "sft_weight": 1.0}, r"sft_weight must be in \[0, 1\) for grm_sft"),
        ({"text_form": "grm_sft", "text_beta": 0.0}, "text_beta"),
        ({"loss": "outcome", "label_smoothing": 0.1}, "label_smoothing.* go with loss='bradley_terry'"),
        ({"loss": "process", "positive_weight": 0.1}, "positive_weight.* go with loss='bradley_terry'"),
        ({"loss": "outcome", "center_rewards_coefficient": 0.1}, "center_rewards_coefficient.* loss='bradley_terry'"),
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


# Every loss, written out


@pytest.fixture(scope="module")
def rich(pairs_with_logprobs):
    """The same pairs with every column that a loss may read, `margin` excepted."""
    rng = np.random.default_rng(0)

    def columns(row, index):
        new = {"chosen_label": float(index % 3 > 0), "rejected_label": float(index % 4 == 0)}
        for side in ("chosen", "rejected"):
            length = len(row[f"{side}_ids"]) - row["prompt_length"]
            new[f"{side}_reference"] = -rng.uniform(20, 60)
            new[f"{side}_negentropies"], new[f"{side}_logmargins"] = -rng.exponential(size=(2, length))
            new[f"{side}_step_values"] = np.where(rng.random(length) < 0.6, math.nan, rng.random(length))
        return new

    return pairs_with_logprobs.map(columns, with_indices=True)


def plain(trainer, data, lm_head):
    """What the model says about the first eight pairs, as the formulas name it; no loss of ours."""
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))  # in the order of the data
    inner = trainer.model.get_base_model()
    hidden = inner.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    pairs = [data[i] for i in range(8)]
    sides = [(row, side) for side in ("chosen", "rejected") for row in pairs]
    o = SimpleNamespace(batch=batch, settings=trainer.args, rewards=inner.score(hidden).squeeze(-1), pairs=pairs)
    o.column = lambda name: [torch.tensor(row[f"{side}_{name}"]) for row, side in sides]
    o.where = [range(row["prompt_length"], len(row[f"{side}_ids"])) for row, side in sides]
    o.responses = [o.rewards[i, list(where)] for i, where in enumerate(o.where)]
    o.closing = torch.stack([rewards[-1] for rewards in o.responses])
    o.won, o.lost = o.closing[:8], o.closing[8:]
    o.text = []  # S(y), the summed log-probabilities
    for i, where in enumerate(o.where):
        logprobs = (hidden[i, [t - 1 for t in where]] @ lm_head.T).log_softmax(-1)
        o.text.append(logprobs[range(len(where)), batch["input_ids"][i, list(where)]].sum())
    o.text_won, o.text_lost = torch.stack(o.text[:8]), torch.stack(o.text[8:])
    return o


def log_sigmoid(x):
    return x.sigmoid().log()


def bradley_terry(o):
    return -log_sigmoid(o.won - o.lost).mean()


def smoothed(o, e=0.2):
    d = o.won - o.lost - torch.tensor([row.get("margin", 0.0) for row in o.pairs])
    return -((1 - e) * log_sigmoid(d) + e * log_sigmoid(-d)).mean()


def centred(o):
    return 0.05 * ((o.won + o.lost) ** 2).mean()


def outcome(o, labels=None):
    z = torch.stack(o.column("label")) if labels is None else torch.tensor(labels)
    return -(z * log_sigmoid(o.closing) + (1 - z) * log_sigmoid(-o.closing)).mean()


def process(o):
    terms = [
        -(q * log_sigmoid(reward) + (1 - q) * log_sigmoid(-reward))
        for rewards, values in zip(o.responses, o.column("step_values"), strict=True)
        for reward, q in zip(rewards, values, strict=True)
        if not q.isnan()
    ]
    assert 0 < len(terms) < sum(map(len, o.responses))
    return torch.stack(terms).mean()


def mean_nll(o):
    return -torch.stack([o.text[i] / len(o.where[i]) for i in range(8)]).mean()


def grm(o):
    """With beta = 0.05."""
    advantage = o.text_won
    if o.settings.text_form != "grm_sft":
        advantage = advantage - o.text_lost
    if o.settings.text_form == "grm_dpo":
        reference = torch.stack(o.column("reference"))
        advantage = advantage - (reference[:8] - reference[8:])
    return -log_sigmoid(0.05 * advantage).mean()


def centred_u(o):
    """Calibration (4) and (5)."""
    u = []
    for i, rewards in enumerate(o.responses):
        partner = (i + 8) % 16
        means = {"response": o.responses[partner].mean(), "positions": o.rewards[partner].mean(), "none": 0.0}
        s = (rewards - torch.as_tensor(means[o.settings.centering]).detach()).sigmoid()
        u.append(s if i < 8 else 1 - s)
    return u


def pointwise_u(o, labels=None):
    z = [float(label) for label in (o.column("label") if labels is None else labels)]
    return [r.sigmoid() if right else 1 - r.sigmoid() for r, right in zip(o.responses, z, strict=True)]


def consistency(o, u):
    """A / S after the first step; S is kept for the test."""
    column = {"entropy": "negentropies", "top1_margin": "logmargins"}.get(o.settings.weighting, "logprobs")
    total, halves, count = 0.0, 0.0, 0
    for i, logweights in enumerate(o.column(column)):
        p = {"uniform": torch.ones_like(logweights), "inverted": 1 - logweights.exp()}.get(
            o.settings.weighting, logweights.exp()
        )
        if o.settings.weighting == "shuffled":  # which order is another test's business
            p = o.batch["token_probs"][i, list(o.where[i])]
            assert sorted(p.tolist()) == sorted(logweights.exp().tolist())
        a, b, here, there = u[i][:-1], u[i][1:], u[i][:-1].detach(), u[i][1:].detach()
        ell = {
            "mutual_bce": -(there * a.log() + here * b.log()) / 2,
            "plain_log": -(a.log() + b.log()) / 2,
            "l1": (a - b).abs(),
            "l2": (a - b) ** 2,
            "martingale": -(there * a.log() + (1 - there) * (1 - a).log()),
        }[o.settings.form]
        total += (ell * p[1:]).sum()
        halves += ((here + there) / 2 * p[1:]).sum()
        count += len(a)
    o.scale = 0.95 * 0.5 + 0.05 * (halves / count).item()
    return total / count / o.scale


def pairwise(o):
    return 0.7 * bradley_terry(o) + 0.3 * consistency(o, centred_u(o))


def with_margin(data):
    return data.add_column("margin", [0.25 * (i % 5) for i in range(len(data))])


def without_labels(data):
    return data.remove_columns(LABEL_KEYS)


BT = {"consistency_weight": 0.0, "sft_weight": 0.0}
ICRM = {"consistency_weight": 0.3, "sft_weight": 0.0}
GRM = {"consistency_weight": 0.0, "sft_weight": 0.2, "text_beta": 0.05}
RIGHT = [1.0] * 8 + [0.0] * 8
# name: settings, loss by hand, and what changes in the data
CASES = {
    "label smoothing": (BT | {"label_smoothing": 0.2}, smoothed),
    "label smoothing, margin": (BT | {"label_smoothing": 0.2}, smoothed, with_margin),
    "label smoothing, centred": (
        BT | {"label_smoothing": 0.2, "center_rewards_coefficient": 0.05},
        lambda o: smoothed(o) + centred(o),
    ),
    "label smoothing, ICRM, margin": (
        ICRM | {"label_smoothing": 0.2},
        lambda o: 0.7 * smoothed(o) + 0.3 * consistency(o, centred_u(o)),
        with_margin,
    ),
    "positive rewards": (
        BT | {"positive_weight": 0.3},
        lambda o: bradley_terry(o) - 0.3 * log_sigmoid(o.won.mean()),
    ),
    "positive rewards, label smoothing, centred": (
        BT | {"positive_weight": 0.3, "label_smoothing": 0.2, "center_rewards_coefficient": 0.05},
        lambda o: smoothed(o) + centred(o) - 0.3 * log_sigmoid(o.won.mean()),
    ),
    "grm_sft": (GRM | {"text_form": "grm_sft"}, lambda o: 0.8 * bradley_terry(o) + 0.2 * grm(o)),
    "grm_dpo_noref": (GRM | {"text_form": "grm_dpo_noref"}, lambda o: 0.8 * bradley_terry(o) + 0.2 * grm(o)),
    "grm_dpo": (GRM | {"text_form": "grm_dpo"}, lambda o: 0.8 * bradley_terry(o) + 0.2 * grm(o)),
    "grm_sft, ICRM": (
        GRM | {"text_form": "grm_sft", "consistency_weight": 0.3},
        lambda o: 0.8 * 0.7 * bradley_terry(o) + 0.3 * consistency(o, centred_u(o)) + 0.2 * grm(o),
    ),
    "mean_nll": (GRM | {"text_form": "mean_nll"}, lambda o: bradley_terry(o) + 0.2 * mean_nll(o)),
    "outcome": (BT | {"loss": "outcome"}, outcome),
    "outcome of the pairs": (BT | {"loss": "outcome"}, lambda o: outcome(o, RIGHT), without_labels),
    "outcome, ICRM": (
        ICRM | {"loss": "outcome"},
        lambda o: 0.7 * outcome(o) + 0.3 * consistency(o, pointwise_u(o)),
    ),
    "outcome of the pairs, ICRM": (
        ICRM | {"loss": "outcome"},
        lambda o: 0.7 * outcome(o, RIGHT) + 0.3 * consistency(o, pointwise_u(o, RIGHT)),
        without_labels,
    ),
    "outcome, ICRM and text": (
        ICRM | {"loss": "outcome", "sft_weight": 0.2},
        lambda o: 0.7 * outcome(o) + 0.3 * consistency(o, pointwise_u(o)) + 0.2 * mean_nll(o),
    ),
    "process": (BT | {"loss": "process"}, process),
    "process, ICRM": (
        ICRM | {"loss": "process"},
        lambda o: 0.7 * process(o) + 0.3 * consistency(o, pointwise_u(o)),
    ),
    "process, ICRM of the pairs": (
        ICRM | {"loss": "process"},
        lambda o: 0.7 * process(o) + 0.3 * consistency(o, pointwise_u(o, RIGHT)),
        without_labels,
    ),
    **{f"form {form}": (ICRM | {"form": form}, pairwise) for form in FORMS},
    **{f"centring {centering}": (ICRM | {"centering": centering}, pairwise) for centering in CENTERINGS},
    **{f"weights {name}": (ICRM | {"weighting": name}, pairwise) for name in WEIGHTINGS if name != "random_pairs"},
}


@pytest.mark.parametrize("name", CASES)
def test_every_loss_and_its_gradient_equal_the_formula(base_model, tokenizer, rich, tmp_path, name):
    settings, formula, change = (*CASES[name], lambda data: data)[:3]
    data = change(rich)
    trainer = make(base_model, tokenizer, data, tmp_path, **settings)
    torch.manual_seed(0)
    with torch.no_grad():  # LoRA starts at zero and the head near it: rewards worth the name
        for key, value in trainer.model.named_parameters():
            if "lora_B" in key or "score" in key:
                value.normal_(std=0.3)
    lm_head = AutoModelForCausalLM.from_pretrained(base_model).lm_head.weight.detach()
    trainer.model.train()
    o = plain(trainer, data, lm_head)
    want = formula(o)
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    want_gradient = torch.autograd.grad(want, trained)
    got = trainer.compute_loss(trainer.model, dict(o.batch))
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    for a, b in zip(torch.autograd.grad(got, trained), want_gradient, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert float(trainer.scale.value) == pytest.approx(getattr(o, "scale", 0.5), rel=1e-5)


def test_every_option_has_a_case():
    for option, known in {"loss": LOSSES, "text_form": TEXT_FORMS, "form": FORMS, "weighting": WEIGHTINGS}.items():
        seen = {settings.get(option) for settings, *_ in CASES.values()}
        assert set(known) - seen <= {"bradley_terry", "random_pairs"}, option  # the default; below


def test_the_policy_of_grm_starts_at_its_reference(base_model, tokenizer, rich, tmp_path):
    """LoRA starts at zero, so with the base model's sums as reference the text term starts at log 2."""
    scorer = model_scorer(load_causal_lm(base_model, device="cpu"), tokenizer.pad_token_id)
    for ids, name in zip(("chosen_ids", "rejected_ids"), REFERENCE_COLUMNS, strict=True):
        sums = [values.sum() for values in scorer(list(zip(rich[ids], rich["prompt_length"], strict=True)))]
        rich = rich.remove_columns(name).add_column(name, sums)
    trainer = make(base_model, tokenizer, rich, tmp_path, **GRM, text_form="grm_dpo", learning_rate=0.0, max_steps=2)
    trainer.train()
    assert trainer.state.log_history[0]["sft_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_sums_of_log_probabilities_are_not_rounded_to_bfloat16(base_model, tokenizer, rich, tmp_path):
    """A mean token loss near 6.6 is known to 1/64 in bfloat16; times 60 tokens that is a nat."""
    half = {"model_init_kwargs": {"dtype": "bfloat16"}}
    trainer = make(base_model, tokenizer, rich, tmp_path, **GRM, **half, text_form="grm_sft")
    head = load_causal_lm(base_model, device="cpu").lm_head.weight.bfloat16().double()
    inner = trainer.model.get_base_model().model.eval()
    assert inner.dtype == torch.bfloat16
    errors = []
    for row in list(rich)[:8]:
        batch, start = trainer.data_collator([row]), row["prompt_length"]
        ids = batch["input_ids"][:1, : len(row["chosen_ids"])]
        with torch.no_grad():
            trainer.compute_loss(trainer.model, dict(batch))
            logprobs = (inner(ids).last_hidden_state[0].double() @ head.T).log_softmax(-1)
        want = logprobs[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum().item()
        got = trainer._metrics["train" if trainer.model.training else "eval"]["sft_loss"][-1]
        errors.append(abs(-math.log(math.expm1(got)) / 0.05 - want))  # -log sigmoid(x) = got, solved for x
    assert max(errors) < 0.3


# Shuffled weights and random partners


def weights_of(trainer, rows):
    """The weights of each row's response tokens, chosen rows first."""
    batch = trainer.data_collator(rows)
    return [p[given].tolist() for p, given in zip(batch["token_probs"], batch["response_mask"], strict=True)]


def test_a_response_keeps_its_shuffled_order_in_every_epoch_and_company(base_model, tokenizer, rich, tmp_path):
    trainer = make(base_model, tokenizer, rich, tmp_path, weighting="shuffled")
    straight = make(base_model, tokenizer, rich, tmp_path)
    rows = [rich[i] for i in range(6)]
    first, again, alone = (weights_of(trainer, given) for given in (rows, rows, rows[2:3]))
    assert first == again and [first[2], first[8]] == alone
    plain_weights = weights_of(straight, rows)
    assert all(sorted(a) == sorted(b) for a, b in zip(first, plain_weights, strict=True))
    assert sum(a != b for a, b in zip(first, plain_weights, strict=True)) >= 10  # of 12


def test_responses_of_one_length_are_shuffled_in_different_orders(base_model, tokenizer, rich, tmp_path):
    trainer = make(base_model, tokenizer, rich, tmp_path, weighting="shuffled")
    row = dict(rich[0])
    length = len(row["chosen_logprobs"])
    rng = np.random.default_rng(0)
    orders = set()
    for _ in range(8):
        row["chosen_logprobs"] = np.sort(-rng.exponential(size=length))
        orders.add(tuple(np.argsort(weights_of(trainer, [row])[0])))
    assert len(orders) == 8


def test_random_partners_follow_the_seed(base_model, tokenizer, rich, tmp_path):
    runs = {}
    for name, seed, weighting in (("a", 0, "random_pairs"), ("b", 0, "random_pairs"), ("c", 0, "probability")):
        runs[name] = make(base_model, tokenizer, rich, tmp_path / name, **ICRM, seed=seed, weighting=weighting)
        runs[name].train()
    a, b, c = map(weights, runs.values())
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    batch = next(iter(runs["a"].get_train_dataloader()))
    values = []
    for seed in (1, 1, 2):
        runs["a"].scale.value = torch.tensor(0.5)
        torch.manual_seed(seed)
        values.append(runs["a"].compute_loss(runs["a"].model, dict(batch)).item())
    assert values[0] == values[1] != values[2]


# Columns


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({}, ("chosen_logprobs", "rejected_logprobs")),
        ({"weighting": "shuffled"}, ("chosen_logprobs", "rejected_logprobs")),
        ({"weighting": "random_pairs"}, ("chosen_logprobs", "rejected_logprobs")),
        ({"weighting": "entropy"}, ("chosen_negentropies", "rejected_negentropies")),
        ({"weighting": "top1_margin"}, ("chosen_logmargins", "rejected_logmargins")),
        ({"loss": "process"}, STEP_COLUMNS),
        ({"text_form": "grm_dpo"}, REFERENCE_COLUMNS),
        ({"loss": "outcome"}, LABEL_KEYS[1:]),
        ({"loss": "outcome"}, LABEL_KEYS[:1]),
        ({"loss": "process"}, LABEL_KEYS[1:]),
    ],
)
def test_a_missing_column_is_named(base_model, tokenizer, rich, tmp_path, settings, missing):
    with pytest.raises(ValueError, match=".*".join(missing)):
        make(base_model, tokenizer, rich.remove_columns(missing), tmp_path, **settings)


def test_a_generator_that_answers_another_question_is_refused(base_model, tokenizer, pairs, rich, tmp_path):
    answer = {"add_logprobs": lambda dataset, tokenizer: rich.remove_columns("chosen_negentropies")}
    with pytest.raises(ValueError, match="chosen_negentropies"):
        make(base_model, tokenizer, pairs, tmp_path, weighting="entropy", extra=answer)


def raw(language, count=6, **columns):
    """Conversations with columns of labels; the second row is refused, as its responses are equal."""
    rows = [
        {
            "prompt": [{"role": "user", "content": language.prompts[i]}],
            "chosen": [{"role": "assistant", "content": f"good answer {i}"}],
            "rejected": [{"role": "assistant", "content": f"{'good answer' if i == 1 else 'bad one'} {i}"}],
            **{name: values[i] for name, values in columns.items()},
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("line", [{}, {"line": [7] * 6}])
def test_labels_of_raw_conversations_stay_with_their_rows(base_model, tokenizer, language, tmp_path, line):
    labels = {"chosen_label": [1, 0, 0, 1, 0, 1], "rejected_label": [0, 1, 1, 1, 0, 0]}
    trainer = make(base_model, tokenizer, raw(language, **labels, **line), tmp_path, **BT, loss="outcome")
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    assert batch["outcomes"].tolist() == [1, 0, 1, 0, 1, 0, 1, 1, 0, 0]


def test_values_of_tokens_go_with_tokens(base_model, tokenizer, language, tmp_path):
    """Rows that are yet to be tokenised cannot have them."""
    steps = dict.fromkeys(STEP_COLUMNS, [[1.0]] * 6)
    with pytest.raises(ValueError, match="chosen_step_values.*tokenize_pairs"):
        make(base_model, tokenizer, raw(language, **steps), tmp_path, **BT, loss="process")


# Numbers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("terms", [{}, {"consistency_weight": 0.0, "sft_weight": 0.0}], ids=["icrm", "bradley_terry"])
def test_what_is_not_finite_stops_the_run_with_its_rows(
    base_model, tokenizer, pairs_with_logprobs, tmp_path, what, terms
):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path, **terms)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if what == "loss" and "score.modules_to_save" in name:
                weight.fill_(torch.nan)
            if what == "gradient" and "layers.0.self_attn.q_proj.lora_B" in name:
                weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match=f"the {what} of step 1 is not finite") as error:
        trainer.train()
    (saved,) = tmp_path.glob("non_finite_batch-0.safetensors")
    batch = load_file(saved)
    known = {tuple(row["chosen_ids"]): row["line"] for row in pairs_with_logprobs}
    sides = zip(batch["input_ids"][:4], batch["attention_mask"][:4], strict=True)
    rows = [known[tuple(ids[mask.bool()].tolist())] for ids, mask in sides]
    assert len(batch["input_ids"]) == 8
    assert batch["line"].tolist() == rows and f"rows {rows} of the data" in str(error.value)


def test_the_saved_batch_gives_the_same_loss(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path, sft_weight=0.1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with pytest.raises(FloatingPointError):
        stop_unless_finite(trainer, torch.tensor(torch.inf), batch, tmp_path)
    saved = load_file(tmp_path / "non_finite_batch-0.safetensors")
    trainer.model.eval()
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, saved) == trainer.compute_loss(trainer.model, batch)


@pytest.mark.slow
def test_the_memory_of_a_thousand_steps_is_flat(base_model, tokenizer, pairs_with_logprobs, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step % 100 == 0:
                seen.append(psutil.Process().memory_info().rss / 2**20)

    settings = {"max_steps": 1000, "per_device_train_batch_size": 2, "logging_steps": 50, "sft_weight": 0.01}
    trainer = make(base_model, tokenizer, pairs_with_logprobs, tmp_path, extra={"callbacks": [Watch()]}, **settings)
    trainer.train()
    assert len(seen) == 10
    assert max(seen[2:]) - seen[1] < 10, seen  # MiB; between step 200 and 1000
