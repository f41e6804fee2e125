"""Any decoder: Llama, Gemma, Qwen2 and Qwen3 go the whole way from a local directory to token rewards."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig
from tiny import FAMILIES, TEXTS, micro, save_tiny
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from icrm_lib import runtime
from icrm_lib.lab.data import SPLITS
from icrm_lib.lab.workspace import Workspace
from icrm_lib.reward_model import RewardModel
from icrm_lib.tokenization import tokenize_conversation
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.trainer import ICRMTrainer

SIZES = {"batch_size": 4}
MICRO = micro(
    data={"validation_pairs": 4, "test_pairs": 6, "max_length": 192},
    generator=SIZES,
    reward_model=SIZES | {"consistency_weight": 0.3, "sft_weight": 0.1},
)
PANDALM = "../shared/data/pandalm_human.jsonl"


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
    embeddings = trainer.model.get_base_model().get_input_embeddings().weight
    assert (trainer.lm_head.weight.data_ptr() == embeddings.data_ptr()) == tied  # no copy of what stays as it is


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
    (report,) = real.reports
    assert report.kept + report.refused + report.unread == len(path.read_bytes().splitlines())
    assert set(report.counts()) <= {"reply too long"}
    assert str(path.parent) not in str(report)


def test_real_pairs_give_a_reward_model_from_scratch(real):
    model = real.reward_model("icrm")
    assert isinstance(model, RewardModel)
    conversations = talks(real.pairs["test"]) + talks(real.pairs["test"], "rejected")
    scores = model.score(conversations, max_length=real.profile.data.max_length)
    assert scores.shape == (12,) and np.isfinite(scores).all() and np.ptp(scores) > 0
    assert real.reports[0].used == {split: len(rows) for split, rows in real.tokenized.items()}
    assert all(len(real.pairs[split]) == len(real.tokenized[split]) for split in SPLITS)
