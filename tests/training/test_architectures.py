"""Any decoder: Llama, Gemma, Qwen2 and Qwen3 go the whole way from a local directory to token rewards."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GemmaConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from icrm_lib import runtime
from icrm_lib.lab.workspace import SPLITS, Workspace
from icrm_lib.language_model.causal import scratch_tokenizer
from icrm_lib.profiles import BaseModelSettings, DataSettings, GeneratorSettings, Profile, RewardModelSettings
from icrm_lib.reward_model.model import RewardModel
from icrm_lib.tokenization import tokenize_conversation
from icrm_lib.training.trainer import ICRMConfig, ICRMTrainer

LORA = {"lora_rank": 2, "lora_alpha": 4, "batch_size": 4, "epochs": 1.0}
MICRO = Profile(
    name="micro",
    data=DataSettings(train_pairs=24, validation_pairs=4, test_pairs=6, max_length=192),
    base_model=BaseModelSettings(hidden_size=16, layers=1, heads=2, vocabulary=400, steps=3, batch_size=4),
    generator=GeneratorSettings(**LORA),
    reward_model=RewardModelSettings(**LORA, consistency_weight=0.3, sft_weight=0.1),
)
PANDALM = "../shared/data/pandalm_human.jsonl"

TEXTS = [
    text
    for number in range(48)
    for text in (
        f"Which month is number {number % 12 + 1}? Réponse courte 😀",
        f"It is the one after number {number % 12}, and {number} is my lucky number.",
        f"No idea, ask {number} others!\n\nOr do not.",
    )
]
GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def gemma_turns(tokenizer):
    tokenizer.add_special_tokens({"extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = GEMMA_TURNS


def chatml(tokenizer):
    """As Qwen ships it: no BOS, and the pad token is not the closing token."""
    tokenizer.bos_token = None
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.chat_template = CHATML


# family: (configuration class, its own arguments, what makes the tokenizer's template)
FAMILIES = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False}, lambda tokenizer: None),
    "gemma": (GemmaConfig, {"head_dim": 16, "num_key_value_heads": 1}, gemma_turns),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True, "num_key_value_heads": 1}, chatml),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": False, "head_dim": 16, "num_key_value_heads": 1}, chatml),
}


def save_tiny(family, folder):
    config_class, own, template = FAMILIES[family]
    tokenizer = scratch_tokenizer(TEXTS, 400)
    template(tokenizer)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # More rows than tokens, as many checkpoints have; larger weights than usual, for outputs that differ.
    config = config_class(vocab_size=len(tokenizer) + 8, initializer_range=0.2, **size, **ids, **own)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "months.jsonl"
    rows = zip(TEXTS[::3], TEXTS[1::3], TEXTS[2::3], strict=True)
    lines = (json.dumps({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=FAMILIES)
def trained(request, tmp_path_factory, preferences):
    """Workspace of one family with its ICRM reward model."""
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, folder / "model")
    ws = Workspace(MICRO, preferences=preferences, base_model=folder / "model", folder=folder / "runs")
    ws.reward_model_folder("icrm")
    return ws


def talks(dataset, side="chosen"):
    return [[*row["prompt"], {"role": "assistant", "content": row[side]}] for row in dataset]


def test_training_logs_every_part_of_the_loss(trained):
    log = (trained.reward_model_folder("icrm") / "log.jsonl").read_text().splitlines()
    entries = {entry["step"]: entry for entry in map(json.loads, log) if "loss" in entry}
    assert list(entries) == [5]
    parts = [entries[5][name] for name in ("bt_loss", "consistency_loss", "sft_loss")]
    assert min(parts) > 0
    assert entries[5]["loss"] == pytest.approx(np.dot([0.7, 0.3, 0.1], parts), rel=1e-3)


def test_a_saved_reward_model_needs_no_code_of_ours(trained):
    folder = trained.reward_model_folder("icrm")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    conversations = talks(trained.pairs["test"]) + talks(trained.pairs["test"], "rejected")
    texts = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in conversations]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()  # the padded rows are the hard ones
    with torch.no_grad():
        plain = model(**batch).logits[:, 0].numpy()
    scores = trained.reward_model("icrm").score(conversations)
    np.testing.assert_allclose(scores, plain, rtol=1e-4, atol=1e-5)
    assert np.ptp(scores) > 1e-3


def test_training_has_changed_the_scores(trained):
    """Against the same base model and head, trained by Bradley-Terry alone."""
    conversations = talks(trained.pairs["test"])
    scores = [trained.reward_model(method).score(conversations) for method in ("icrm", "bt")]
    assert np.abs(scores[0] - scores[1]).max() > 1e-6


def test_every_response_token_has_a_reward(trained):
    model = trained.reward_model("icrm")
    for talk in talks(trained.pairs["test"]):
        row = tokenize_conversation(trained.tokenizer, talk)
        tokens, response = model.token_rewards(talk), talk[-1]["content"]
        assert len(tokens) == len(row.input_ids) - row.prompt_length
        assert "".join(token.text for token in tokens[:-1]) == response
        assert (tokens[-1].text, tokens[-1].start) == ("", len(response))
        assert tokens[-1].reward == pytest.approx(model.score([talk])[0], abs=1e-5)
        assert len({token.reward for token in tokens}) > 1


def test_cached_probabilities_are_the_generators(trained):
    generator = AutoModelForCausalLM.from_pretrained(trained.generator).eval()
    for row in trained.with_logprobs("validation"):
        ids, start = row["rejected_ids"], row["prompt_length"]
        with torch.no_grad():
            logprobs = generator(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        want = logprobs[range(start - 1, len(ids) - 1), ids[start:]]
        np.testing.assert_allclose(row["rejected_logprobs"], want, rtol=1e-4, atol=1e-4)


def test_text_term_is_the_base_models_own_loss(trained, tmp_path):
    """Fresh LoRA changes nothing, so L_sft is the causal model's own mean loss on the chosen responses."""
    args = ICRMConfig(output_dir=str(tmp_path), sft_weight=1.0, max_length=None, bf16=False, use_cpu=True)
    trainer = ICRMTrainer(
        trained.base_model,
        args,
        train_dataset=trained.with_logprobs("train"),
        processing_class=trained.tokenizer,
        peft_config=LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear"),
    )
    trainer.model.eval()
    rows = [trainer.train_dataset[i] for i in range(4)]
    with torch.no_grad():
        trainer.compute_loss(trainer.model, trainer.data_collator(rows))
    causal_lm = AutoModelForCausalLM.from_pretrained(trained.base_model).eval()
    want = []
    for row in rows:
        ids = torch.tensor([row["chosen_ids"]])
        labels = ids.clone()
        labels[:, : row["prompt_length"]] = -100
        with torch.no_grad():
            want.append(causal_lm(ids, labels=labels).loss.item())
    assert trainer._metrics["eval"]["sft_loss"] == [pytest.approx(np.mean(want), rel=1e-4)]
    tied = causal_lm.config.tie_word_embeddings
    assert (trainer.lm_head is None) == tied


def test_untied_and_tied_heads_are_both_covered():
    tied = {family: settings[0](**settings[1]).tie_word_embeddings for family, settings in FAMILIES.items()}
    assert tied == {"llama": False, "gemma": True, "qwen2": True, "qwen3": False}


# Real preferences


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not runtime.resolve_path(PANDALM).is_file():
        pytest.skip(f"{PANDALM} (human preferences, not part of the project) is not there")
    folder = tmp_path_factory.mktemp("real")
    return Workspace(MICRO, preferences=PANDALM, base_model="scratch", folder=folder)


def test_real_pairs_are_all_accounted_for_and_split_by_prompt(real):
    prompts = [set(real.pairs[split]["prompt_id"]) for split in SPLITS]
    assert all(not a & b for i, a in enumerate(prompts) for b in prompts[:i])
    assert [len(real.pairs[split]) for split in SPLITS] == [24, 4, 6]
    path = runtime.resolve_path(PANDALM)
    report = real.reports[0]
    assert report.kept + report.refused == len(path.read_bytes().splitlines()) and report.kept > 700
    assert str(path.parent) not in str(report)


def test_real_pairs_give_a_reward_model_from_scratch(real):
    model = real.reward_model("icrm")
    assert isinstance(model, RewardModel)
    conversations = talks(real.pairs["test"]) + talks(real.pairs["test"], "rejected")
    scores = model.score(conversations)
    assert scores.shape == (12,) and np.isfinite(scores).all() and np.ptp(scores) > 0
    for split in SPLITS:
        report = real.reports[1 + SPLITS.index(split)]
        assert len(real.tokenized[split]) == report.kept == len(real.pairs[split]) - report.refused
        assert set(report.counts()) <= {"reply too long"}
