"""DPO: the pairs, the training, the rewards that it implies."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from rows import language_pairs
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.scratch import scratch_tokenizer, small_llama
from icrm_lib.policy import implicit_rewards, pairs_from_samples, train_dpo
from icrm_lib.preferences import preference_rows, tokenize_pairs
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.tokenization import prepare_tokenizer


def question(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def samples():
    responses = [["a", "b", "c"], ["d", "d", "d"], ["e", "f", "g"], ["h", "h ", "i"]]
    return pd.DataFrame([{"prompt": i, "response": text} for i, row in enumerate(responses) for text in row])


def test_pairs_are_the_best_against_the_worst_of_each_prompt(samples):
    prompts = [question(text) for text in ("One?", "Two?", "Three?", "Four?")]
    scores = [0, 2, 1, 5, 5, 5, 3, 1, 2, 2, 1, 1.5]
    pairs, left_out = pairs_from_samples(samples, scores, prompts)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in pairs] == [
        (prompts[0], "b", "a"),
        (prompts[2], "e", "f"),
    ]
    assert left_out == {"held_out": 0, "tied": 1, "identical": 1, "unfinished": 0}


def test_a_constant_reward_gives_no_pair(samples):
    pairs, left_out = pairs_from_samples(samples, [0.0] * 12, [question(str(i)) for i in range(4)])
    assert len(pairs) == 0 and left_out["tied"] == 4


@pytest.mark.parametrize("twin", ["what is  THIS", "What is this ?!", "Ｗhat is this?", " what\nis this"])
def test_test_prompts_are_left_out_whatever_their_case_spaces_and_marks(samples, twin):
    prompts = [question("What is this?"), *(question(str(i)) for i in range(3))]
    pairs, left_out = pairs_from_samples(samples, range(12), prompts, held_out=[question(twin)])
    assert left_out["held_out"] == 1 and question("What is this?") not in list(pairs["prompt"])


def test_scores_must_be_one_a_sample_and_finite(samples):
    with pytest.raises(ValueError, match="need 12 finite scores"):
        pairs_from_samples(samples, [1.0] * 11, [])
    with pytest.raises(ValueError, match="11 finite"):
        pairs_from_samples(samples, [1.0] * 11 + [float("nan")], [])


def test_responses_that_were_cut_make_no_pair_and_no_pair_trains_nothing(base_model, tokenizer, tmp_path):
    prompts = [[{"role": "user", "content": "a"}]]
    samples = pd.DataFrame({"prompt": 0, "response": ["x", "y", "z"], "finished": [True, True, False]})
    pairs, left_out = pairs_from_samples(samples, [1.0, 2.0, 3.0], prompts)
    assert (pairs[0]["chosen"], pairs[0]["rejected"], left_out["unfinished"]) == ("y", "x", 1)
    pairs, _ = pairs_from_samples(samples, [0.0, 0.0, 0.0], prompts)
    with pytest.raises(ValueError, match="no pairs to train on"):
        train_dpo(base_model, tokenizer, pairs, RewardModelSettings(), folder=tmp_path, seed=0)


TINY = {"lora_rank": 4, "lora_alpha": 8, "batch_size": 8}


@pytest.fixture(scope="module")
def texts(language):
    """24 testbed pairs as `load_preferences` gives them."""
    return language_pairs(language, 24)


@pytest.fixture(scope="module")
def tokens(texts, tokenizer):
    return tokenize_pairs(texts, tokenizer, max_length=None)[0]


@pytest.fixture(scope="module")
def trained(base_model, tokenizer, texts, tmp_path_factory):
    """A trainer after twelve epochs, and its log."""
    folder = tmp_path_factory.mktemp("dpo")
    settings = RewardModelSettings(**TINY, epochs=12, learning_rate=1e-2)
    trainer = train_dpo(base_model, tokenizer, texts, settings, folder=folder, seed=0, beta=0.2)
    return trainer, log(folder)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_loss_of_the_untrained_policy_is_log_2(base_model, tokenizer, texts, tmp_path):
    settings = RewardModelSettings(**TINY, epochs=2, learning_rate=0.0)
    train_dpo(base_model, tokenizer, texts, settings, folder=tmp_path, seed=0)
    (first,) = (entry for entry in log(tmp_path) if "loss" in entry)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6) and first["rewards/margins"] == 0


def test_training_lowers_the_loss_and_moves_lora_alone(trained, base_model):
    trainer, entries = trained
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1 and losses[-1] < 0.6
    assert all("lora_" in name for name, value in trainer.model.named_parameters() if value.requires_grad)
    base = AutoModelForCausalLM.from_pretrained(base_model).state_dict()
    kept = {
        k.replace(".base_layer", "").removeprefix("base_model.model."): v for k, v in trainer.model.state_dict().items()
    }
    assert all(torch.equal(kept[name], value) for name, value in base.items())


def test_seeds_repeat(base_model, tokenizer, texts, tmp_path):
    settings = RewardModelSettings(**TINY, epochs=1)
    runs = []
    for run, seed in enumerate((0, 0, 1)):
        torch.manual_seed(run)  # what was drawn before plays no part
        trainer = train_dpo(base_model, tokenizer, texts, settings, folder=tmp_path / str(run), seed=seed)
        runs.append([value for value in trainer.model.parameters() if value.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def assert_same_ids(dataset, tokens):
    assert len(dataset) == len(tokens)
    for ours, theirs in zip(tokens, dataset, strict=True):
        start = ours["prompt_length"]
        assert theirs["prompt_ids"] == ours["chosen_ids"][:start]
        for side in ("chosen_ids", "rejected_ids"):
            assert theirs["prompt_ids"] + theirs[side] == ours[side]


def test_dpo_trains_on_the_token_ids_of_the_reward_models(trained, tokens, tokenizer):
    assert_same_ids(trained[0].train_dataset, tokens)
    assert all(row["chosen_ids"][-1] == tokenizer.eos_token_id for row in trained[0].train_dataset)


def test_own_texts_too_have_the_same_token_ids(tmp_path):
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {i} + {i}? Straße 😀"}],
            "chosen": f" It is {2 * i},\n  as {i} + {i} = {2 * i}. ",
            "rejected": f"\nI do not know {i}.",
        }
        for i in range(8)
    ]
    texts = preference_rows(Dataset.from_list(rows))[0]
    words = [text for row in rows for text in (row["prompt"][0]["content"], row["chosen"], row["rejected"])]
    tokenizer = prepare_tokenizer(scratch_tokenizer(words, 400))
    small_llama(tokenizer, hidden_size=16, layers=1, heads=2, max_length=128, seed=0).save_pretrained(tmp_path)
    settings = RewardModelSettings(**TINY, epochs=1)
    trainer = train_dpo(tmp_path, tokenizer, texts, settings, folder=tmp_path / "run", seed=0)
    assert_same_ids(trainer.train_dataset, tokenize_pairs(texts, tokenizer, max_length=None)[0])


def ask(policy, reference, tokens, side, beta, tokenizer):
    rows, starts = tokens[f"{side}_ids"][:], tokens["prompt_length"][:]
    return implicit_rewards(policy, reference, rows, starts, beta=beta, pad_token_id=tokenizer.pad_token_id)


def test_a_model_implies_no_reward_over_itself(base_model, tokenizer, tokens):
    model = load_causal_lm(base_model, device="cpu")
    rewards = ask(model, model, tokens, "chosen", 0.1, tokenizer)
    lengths = [len(row["chosen_ids"]) - row["prompt_length"] for row in tokens]
    assert [len(values) for values in rewards] == lengths
    assert all((values == 0).all() and values.dtype == np.float32 for values in rewards)


def test_implied_rewards_are_beta_times_the_log_ratio_so_far(base_model, tokenizer, tokens):
    policy, reference = (load_causal_lm(base_model, device="cpu") for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for value in policy.parameters():
            value.add_(0.05 * torch.randn_like(value))
    for side in ("chosen", "rejected"):
        rewards = ask(policy, reference, tokens, side, 0.3, tokenizer)
        for row, got in zip(tokens, rewards, strict=True):
            ids, start = row[f"{side}_ids"], row["prompt_length"]
            want, total = [], 0.0
            with torch.no_grad():
                ours, theirs = (m(torch.tensor([ids])).logits[0].double().log_softmax(-1) for m in (policy, reference))
            for t in range(start, len(ids)):
                total += 0.3 * (ours[t - 1, ids[t]] - theirs[t - 1, ids[t]]).item()
                want.append(total)
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
            assert abs(got[-1]) > 1e-3


def test_the_reward_of_the_last_token_is_the_one_dpo_trained(trained, base_model, tokenizer, tokens):
    """TRL's own rewards of whole responses, over the same pairs."""
    trainer, _ = trained
    assert isinstance(trainer, DPOTrainer)
    metrics = trainer.evaluate(trainer.train_dataset)
    reference = load_causal_lm(base_model, device="cpu")
    last = {}
    for side in ("chosen", "rejected"):
        rewards = ask(trainer.model, reference, tokens, side, 0.2, tokenizer)
        last[side] = np.array([values[-1] for values in rewards])
        assert metrics[f"eval_rewards/{side}"] == pytest.approx(last[side].mean(), abs=1e-4)
    assert metrics["eval_rewards/accuracies"] == pytest.approx((last["chosen"] > last["rejected"]).mean())
    assert metrics["eval_loss"] == pytest.approx(np.log1p(np.exp(last["rejected"] - last["chosen"])).mean(), abs=1e-4)


def test_a_merged_policy_implies_what_its_adapter_did_and_can_be_saved(
    trained, base_model, tokenizer, tokens, tmp_path
):
    """Last, as merging takes the adapter apart (and TRL has replaced `forward`, so a copy would run the original)."""
    policy, reference = trained[0].model, load_causal_lm(base_model, device="cpu")
    before = ask(policy, reference, tokens, "chosen", 0.2, tokenizer)
    policy = policy.merge_and_unload()
    policy.save_pretrained(tmp_path)
    for merged in (policy, load_causal_lm(tmp_path, device="cpu")):
        for a, b in zip(before, ask(merged, reference, tokens, "chosen", 0.2, tokenizer), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)
            assert np.ptp(a) > 1e-3
    start = torch.tensor([tokens[0]["chosen_ids"][: tokens[0]["prompt_length"]]])
    texts = [
        m.generate(start, do_sample=False, max_new_tokens=8) for m in (policy, load_causal_lm(tmp_path, device="cpu"))
    ]
    assert torch.equal(*texts)
