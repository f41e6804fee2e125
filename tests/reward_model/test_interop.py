"""A model saved by the kit is used by the field's tools without code of ours, and scores the same."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
from trl import GRPOConfig, GRPOTrainer

from icrm_lib.reward_model import RewardModel


@pytest.fixture(scope="module")
def saved(base_model, tokenizer, tmp_path_factory):
    """Directory of a reward model with random weights, as the kit saves it."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    with torch.no_grad():  # rewards that differ visibly
        model.score.weight.mul_(50)
    RewardModel(model, tokenizer).save_pretrained(folder)
    return folder


def test_a_batched_pipeline_gives_the_same_scores(saved, conversations):
    ours = RewardModel.from_pretrained(saved).score(conversations)
    tokenizer = AutoTokenizer.from_pretrained(saved)
    texts = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
    pipe = pipeline("text-classification", model=str(saved), tokenizer=tokenizer, device="cpu", batch_size=5)
    scores = [r["score"] for r in pipe(texts, function_to_apply="none", add_special_tokens=False)]
    np.testing.assert_allclose(scores, ours, atol=1e-5)
    assert np.ptp(ours) > 0.1


def test_grpo_rewards_its_samples_with_it_and_trains(saved, base_model, tokenizer, language, tmp_path):
    prompts = [[{"role": "user", "content": prompt}] for prompt in language.prompts[:8]]
    args = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=24,
        max_steps=3,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
    )
    trainer = GRPOTrainer(
        model=str(base_model),
        reward_funcs=str(saved),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.named_parameters())
    logs = trainer._logs  # the table of completions that TRL prints; it has no public name
    (rewards,) = logs["rewards"].values()
    assert len(rewards) == 4  # it keeps the last batch
    completions = [c if isinstance(c, str) else c[-1]["content"] for c in logs["completion"]]
    asked = [p if isinstance(p, str) else p[-1]["content"] for p in logs["prompt"]]
    talks = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        for prompt, completion in zip(asked, completions, strict=True)
    ]
    np.testing.assert_allclose(list(rewards), RewardModel.from_pretrained(saved).score(talks), atol=1e-4)
