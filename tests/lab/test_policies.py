"""Policies trained on a judge or a reward model gain what they were trained for."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from tiny import micro

from icrm_lib.lab import policies
from icrm_lib.lab.policies import GROUPS, KINDS, _judged, measure_policies
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.policy import pairs_from_samples, train_dpo, train_grpo
from icrm_lib.profiles import DownstreamSettings, RewardModelSettings


@pytest.fixture(scope="module")
def speaker(tokenizer, language, tmp_path_factory):
    """A base model that has learnt the language a little: its responses have gold scores."""
    size = {"hidden_size": 48, "layers": 2, "heads": 2, "steps": 250, "batch_size": 32, "learning_rate": 1e-2}
    changes = {"lora_rank": 4, "lora_alpha": 8, "batch_size": 8, "epochs": 6.0, "sft_weight": 0.001}
    profile = micro("micro_policy", base_model=size, reward_model=changes)
    return Workspace(profile, folder=tmp_path_factory.mktemp("speaker"))


def gold_of(workspace, policy, count=12):
    """Mean gold score and length of samples, on test prompts."""
    language = workspace.language
    prompts = [[{"role": "user", "content": text}] for text in language.split_prompts()[2][:count]]
    found = _judged(workspace, load_causal_lm(workspace.base_model).eval(), prompts, policy)
    return np.mean(found["sampled"]), found


@pytest.mark.slow  # notebook 07 asserts it, too
def test_dpo_on_gold_labels_raises_the_gold_score(speaker, tmp_path):
    language, rng = speaker.language, np.random.default_rng(0)
    prompts = [[{"role": "user", "content": text}] for text in language.split_prompts()[0]]
    texts = [language.sample_responses(prompt[0]["content"], 8, rng) for prompt in prompts]
    samples = pd.DataFrame([{"prompt": i, "response": text} for i, group in enumerate(texts) for text in group])
    gold = [language.gold_score([{"role": "assistant", "content": text}]) for text in samples["response"]]
    pairs, _ = pairs_from_samples(samples, gold, prompts)
    settings = RewardModelSettings(lora_rank=8, lora_alpha=16, batch_size=16, epochs=6, learning_rate=6e-3)
    trainer = train_dpo(speaker.base_model, speaker.tokenizer, pairs, settings, folder=tmp_path, seed=0)
    before, reference = gold_of(speaker, load_causal_lm(speaker.base_model).eval())
    after, found = gold_of(speaker, trainer.model.merge_and_unload().eval())
    assert reference["kl"] == pytest.approx(0, abs=1e-4) and found["kl"] > 0
    assert after > before + 0.5


def test_grpo_raises_its_reward_and_a_constant_one_changes_nothing(speaker, tmp_path):
    prompts = [[{"role": "user", "content": text}] for text in speaker.language.split_prompts()[0][:8]]
    settings = RewardModelSettings(lora_rank=8, lora_alpha=16, batch_size=2, epochs=8, learning_rate=1e-2, warmup=0)
    asked = []

    def shortness(talks):
        asked.extend(talks)
        return [-len(talk[-1]["content"]) for talk in talks]

    def train(reward, folder):
        return train_grpo(
            speaker.base_model,
            speaker.tokenizer,
            prompts,
            reward,
            settings,
            folder=tmp_path / folder,
            seed=0,
            group=4,
            max_new_tokens=64,
        ).model

    _, reference = gold_of(speaker, load_causal_lm(speaker.base_model).eval(), count=6)
    _, shorter = gold_of(speaker, train(shortness, "short").merge_and_unload().eval(), count=6)
    assert np.mean(shorter["tokens"]) < np.mean(reference["tokens"]) - 5
    assert len(asked) == 8 * 8 * 4 and asked[0][0] in [prompt[0] for prompt in prompts]
    constant = train(lambda talks: [0.0] * len(talks), "constant")
    moved = [value for name, value in constant.named_parameters() if "lora_B" in name]
    assert moved and all(not value.any() for value in moved)


def test_policies_of_every_kind_are_trained_and_judged(speaker, tmp_path, monkeypatch):
    monkeypatch.setattr(policies, "GROUP", 4)
    few = Workspace(replace(speaker.profile, downstream=DownstreamSettings(prompts=6)), folder=speaker.folder)

    def shortness(rows, starts):
        return [-np.arange(1.0, len(row) - start + 1) for row, start in zip(rows, starts, strict=True)]

    found = measure_policies(few, shortness, seed=0, folder=tmp_path)
    assert list(found) == ["reference", *KINDS]
    assert all(len(found[kind][name]) == 6 for kind in found for name in ("greedy", "sampled", "tokens"))
    dpo = found["dpo"]
    assert dpo["pairs"] + sum(dpo["left_out"].values()) == 6 * GROUPS and 0 <= dpo["pairs_right"] <= 1
    assert dpo["seconds"] > 0 and np.mean(dpo["tokens"]) < np.mean(found["reference"]["tokens"])
