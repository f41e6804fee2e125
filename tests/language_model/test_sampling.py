"""Samples depend on seed and prompt alone, a killed run goes on, and the distribution is the policy's."""

import copy
import json

import numpy as np
import pytest
import torch
from published import load, write_problems
from tiny import save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from icrm_lib.language_model import sampling
from icrm_lib.language_model.samples import sample, sampler
from icrm_lib.language_model.sampling import SamplingSettings, greedy, prompt_ids
from icrm_lib.preferences import LABEL_KEYS, tokenize_pairs
from icrm_lib.profiles import SampleSettings
from icrm_lib.tokenization import closing_token_ids, prepare_tokenizer

SETTINGS = SamplingSettings(n=4, max_new_tokens=12)


@pytest.fixture(scope="module")
def model(base_model):
    return AutoModelForCausalLM.from_pretrained(base_model).eval()


@pytest.fixture(scope="module")
def prompts(language):
    return [[{"role": "user", "content": prompt}] for prompt in language.prompts[:5]]


def test_order_and_company_do_not_change_a_prompts_samples(model, tokenizer, prompts, tmp_path):
    first = sample(model, tokenizer, prompts, SETTINGS, tmp_path / "a.jsonl")
    other = sample(model, tokenizer, prompts[::-1][:3], SETTINGS, tmp_path / "b.jsonl")
    for i, j in ((4, 0), (3, 1), (2, 2)):
        assert first[first["prompt"] == i]["response"].tolist() == other[other["prompt"] == j]["response"].tolist()
    assert first.groupby("prompt").size().tolist() == [4] * 5 and first["response"].nunique() > 10
    again = sample(model, tokenizer, prompts, SamplingSettings(n=4, max_new_tokens=12, seed=1), tmp_path / "c.jsonl")
    assert again["response"].tolist() != first["response"].tolist()


def test_a_run_goes_on_where_it_was_killed_and_draws_nothing_twice(model, tokenizer, prompts, tmp_path, monkeypatch):
    path = tmp_path / "samples.jsonl"
    whole = sample(model, tokenizer, prompts, SETTINGS, tmp_path / "whole.jsonl")
    sample(model, tokenizer, prompts[:2], SETTINGS, path)
    with open(path, "a") as file:
        file.write('{"prompt": [{"role": "us')  # killed in the middle of a line
    drawn = []
    real = sampling._generate
    monkeypatch.setattr(sampling, "_generate", lambda m, t, p, s: drawn.append(p) or real(m, t, p, s))
    resumed = sample(model, tokenizer, prompts, SETTINGS, path)
    assert drawn == prompts[2:]
    assert resumed.equals(whole)
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_samples_of_other_settings_are_refused(model, tokenizer, prompts, tmp_path):
    sample(model, tokenizer, prompts[:1], SETTINGS, tmp_path / "s.jsonl")
    with pytest.raises(ValueError, match="samples of other settings"):
        sample(model, tokenizer, prompts[:1], SamplingSettings(n=5, max_new_tokens=12), tmp_path / "s.jsonl")
    with pytest.raises(ValueError, match="unknown engine 'vlm'"):
        sample(model, tokenizer, prompts[:1], SETTINGS, tmp_path / "t.jsonl", engine="vlm")
    with pytest.raises(ValueError, match="top_p in"):
        SamplingSettings(top_p=0)


def test_a_prompt_ends_where_the_assistant_begins(tokenizer, prompts):
    ids = prompt_ids(tokenizer, prompts[0])
    assert tokenizer.convert_ids_to_tokens(ids)[-1] == "<assistant>"


def test_lengths_count_the_closing_token_and_cut_responses_are_not_finished(model, tokenizer, prompts, tmp_path):
    frame = sample(model, tokenizer, prompts, SETTINGS, tmp_path / "s.jsonl")
    assert (frame["tokens"] <= 12).all() and (frame["tokens"][~frame["finished"]] == 12).all()
    ended = sampling._response(tokenizer, [11, 12, tokenizer.eos_token_id, 0, 0])
    assert ended.finished and ended.tokens == 3 and ended.text == tokenizer.decode([11, 12])


def test_tokens_are_drawn_from_the_policy_itself(model, tokenizer, prompts, tmp_path):
    # No top-k in secret: the first tokens of many samples follow the model's own probabilities.
    settings = SamplingSettings(n=3000, max_new_tokens=1)
    frame = sample(model, tokenizer, prompts[:1], settings, tmp_path / "s.jsonl")
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids(tokenizer, prompts[0])])).logits[0, -1]
    rare = logits.softmax(-1).sort().values[:-50].sum().item()
    top = {tokenizer.decode([i], skip_special_tokens=True) for i in logits.topk(50).indices.tolist()}
    share = np.mean([text not in top for text in frame["response"]])
    assert share == pytest.approx(rare, abs=4 * np.sqrt(rare * (1 - rare) / 3000))


def test_greedy_responses_do_not_depend_on_company(model, tokenizer, prompts):
    together = greedy(model, tokenizer, prompts, max_new_tokens=10)
    alone = [greedy(model, tokenizer, [prompt], max_new_tokens=10)[0] for prompt in prompts]
    assert together == alone == greedy(model, tokenizer, prompts, max_new_tokens=10, batch_size=2)
    ids = prompt_ids(tokenizer, prompts[0])
    best = model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()
    assert alone[0].text.startswith(tokenizer.decode(best, skip_special_tokens=True))


def test_line_separators_in_a_response_survive_the_file(model, tokenizer, prompts, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "_generate", lambda *_: [sampling.Response("one\u2028two\x85three", 3, True)] * 4)
    first = sample(model, tokenizer, prompts[:1], SETTINGS, tmp_path / "samples.jsonl")
    again = sample(model, tokenizer, prompts[:1], SETTINGS, tmp_path / "samples.jsonl")
    assert again["response"].tolist() == first["response"].tolist() == ["one\u2028two\x85three"] * 4


def test_a_models_own_generation_settings_play_no_part(model, tokenizer, prompts, tmp_path):
    with torch.no_grad():
        sharp = copy.deepcopy(model)
        sharp.lm_head.weight = torch.nn.Parameter(sharp.lm_head.weight * 20)
    plain = greedy(sharp, tokenizer, prompts[:2], max_new_tokens=12)
    drawn = sample(sharp, tokenizer, prompts[:2], SETTINGS, tmp_path / "a.jsonl")
    sharp.generation_config.repetition_penalty = 1.3
    assert greedy(sharp, tokenizer, prompts[:2], max_new_tokens=12) == plain
    again = sample(sharp, tokenizer, prompts[:2], SETTINGS, tmp_path / "b.jsonl")
    assert again["response"].tolist() == drawn["response"].tolist()


def test_a_response_ends_at_the_turn_or_at_eos(tokenizer):
    assert closing_token_ids(tokenizer) == [tokenizer.eos_token_id]
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    other.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}<end_of_turn>{% endfor %}"
        "{% if add_generation_prompt %}<assistant> {% endif %}"
    )
    other = prepare_tokenizer(other)
    turn = other.convert_tokens_to_ids("<end_of_turn>")
    assert closing_token_ids(other) == sorted([turn, other.eos_token_id])
    words = other("use kind words", add_special_tokens=False).input_ids
    assert sampling._response(other, [*words, turn, *words]) == ("use kind words", len(words) + 1, True)
    assert sampling._response(other, words) == ("use kind words", len(words), False)


def test_a_file_of_another_model_or_template_is_refused_and_a_prompt_asked_twice_is_drawn_once(
    model, tokenizer, prompts, tmp_path
):
    path = tmp_path / "samples.jsonl"
    found = sample(model, tokenizer, [prompts[0], prompts[1], prompts[0]], SETTINGS, path)
    assert len(path.read_text().splitlines()) == 1 + 2 and len(found) == 3 * SETTINGS.n
    assert found[found["prompt"] == 0]["response"].tolist() == found[found["prompt"] == 2]["response"].tolist()
    other = copy.deepcopy(model)
    other.name_or_path = "another/model"
    with pytest.raises(ValueError, match="samples of other settings"):
        sample(other, tokenizer, prompts[:1], SETTINGS, path)
    changed = copy.deepcopy(tokenizer)
    changed.chat_template += " "
    with pytest.raises(ValueError, match="samples of other settings"):
        sample(model, changed, prompts[:1], SETTINGS, path)


def test_a_tiny_model_draws_once_and_its_labels_reach_the_tokenised_pairs(tmp_path):
    save_tiny("qwen2", tmp_path / "model")
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "model"))
    samples = SampleSettings(n=2, temperature=0.7, top_p=0.8, max_new_tokens=4)
    path = tmp_path / "samples.jsonl"
    draw = sampler(tmp_path / "model", tokenizer, samples, path, seed=0)
    pairs, reports = load("prm800k", write_problems(tmp_path), tmp_path / "made", draw=draw)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 40 and json.loads(lines[0])["settings"]["top_p"] == 0.8
    assert reports[1].notes[0].startswith("0 of 76 solutions right, 76 without a boxed answer")
    again, _ = load("prm800k", tmp_path, tmp_path / "again", draw=draw)
    assert again["train"][:] == pairs["train"][:] and len(path.read_text().splitlines()) == len(lines)
    tokenized, _ = tokenize_pairs(pairs["train"], tokenizer)
    assert tokenized["chosen_label"][:] == [0.0] * len(tokenized) and LABEL_KEYS[1] in tokenized.column_names
