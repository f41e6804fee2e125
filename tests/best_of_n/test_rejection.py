"""Early rejection: replayed on known candidates, and while sampling."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from icrm_lib.best_of_n import Schedule, early_rejection, rejection, sample_with_early_rejection
from icrm_lib.best_of_n.rejection import choose_schedule, schedules, try_schedules
from icrm_lib.language_model.samples import sample
from icrm_lib.language_model.sampling import SamplingSettings, generation_config, prompt_ids
from icrm_lib.reward_model import RewardModel
from icrm_lib.tokenization import tokenize_conversation

REWARDS = [
    np.array([0.0, 0.1, 0.9, 2.0]),  # best in the end, slow start
    np.array([0.5, 0.6, 0.7]),
    np.array([0.4, 0.2]),
    np.array([0.3, 0.3, 0.3, 0.3, 0.3]),
]


def test_without_cuts_it_is_best_of_n():
    assert early_rejection(REWARDS, Schedule(())) == (0, 14, 14)


def test_the_candidates_behind_are_stopped_where_they_are():
    # after 1 token: 0.5, 0.4, 0.3 go on, 0 is stopped after one token; after 2: 0.6 and 0.3 go on, 2 had ended
    assert early_rejection(REWARDS, Schedule(((1, 3), (2, 2)))) == (1, 1 + 3 + 2 + 5, 14)
    # all live after 3 tokens; an ended candidate counts with its last reward
    assert early_rejection(REWARDS, Schedule(((3, 1),))) == (0, 4 + 3 + 2 + 3, 14)


def test_a_schedule_that_keeps_everybody_changes_nothing_and_ties_keep_the_first():
    assert early_rejection(REWARDS, Schedule(((2, 4),))).tokens == 14
    assert early_rejection([np.array([1.0, 1.0])] * 3, Schedule(((1, 2),))) == (0, 5, 6)


@pytest.mark.parametrize("cuts", [((2, 4), (2, 3)), ((1, 2), (3, 2)), ((0, 2),), ((1, 0),)])
def test_schedules_that_make_no_sense_are_refused(cuts):
    with pytest.raises(ValueError, match="tokens must rise from 1, keeps fall to 1"):
        Schedule(cuts)


def test_every_schedule_is_listed_once():
    found = schedules((10, 20, 30), (8, 4))
    assert len(found) == len(set(found)) == 3 * 2 + 3 * 1
    assert Schedule(((10, 8), (30, 4))) in found


def test_the_most_valuable_schedule_within_the_budget_is_chosen():
    # Candidate 0 is worth most and starts slowly, 1 leads early; both have four tokens.
    rewards = [[np.array([0.0, 0.6, 0.8, 2.0]), np.array([0.5, 0.5, 0.5, 0.5])]]
    values = [np.array([1.0, 0.0])]
    early, late = Schedule(((1, 1),)), Schedule(((2, 1),))
    tried = try_schedules(rewards, values, [early, late])
    assert choose_schedule(tried, 0.8) == (late, 1.0, 6 / 8)
    assert choose_schedule(tried, 0.7) == (early, 0.0, 5 / 8)
    with pytest.raises(ValueError, match="none of 2 schedules uses at most 50%"):
        choose_schedule(tried, 0.5)


@pytest.mark.parametrize("rewards", [[], [np.array([])], [np.array([1.0]), np.array([np.nan])]])
def test_rewards_that_are_no_numbers_are_refused(rewards):
    with pytest.raises(ValueError, match="finite rewards"):
        early_rejection(rewards, Schedule(()))


@pytest.fixture(scope="module")
def policy(base_model):
    return AutoModelForCausalLM.from_pretrained(base_model).eval()


@pytest.fixture(scope="module")
def judge(base_model, tokenizer):
    """A reward model with a head that differs from token to token."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    return RewardModel(model, tokenizer)


@pytest.fixture
def prompt(language):
    return [{"role": "user", "content": language.prompts[3]}]


SETTINGS = SamplingSettings(n=12, max_new_tokens=40)


def test_without_cuts_the_live_run_is_the_best_of_the_plain_samples(policy, judge, tokenizer, prompt, tmp_path):
    samples = sample(policy, tokenizer, [prompt], SETTINGS, tmp_path / "samples.jsonl")
    scores = judge.score_prefixes(prompt, list(samples["response"]), list(samples["finished"]))
    response, used = sample_with_early_rejection(policy, tokenizer, judge, prompt, SETTINGS, Schedule(()))
    assert used.pick == scores.argmax() and response.text == samples["response"][used.pick]
    assert used.tokens == samples["tokens"].sum()


@pytest.mark.parametrize("readout", ["place", "closing"])
def test_the_first_cut_stops_those_that_the_replay_stops(policy, judge, tokenizer, prompt, tmp_path, readout):
    # The live run reads text. A random policy also writes special tokens, which are no text: look for draws without.
    for seed in range(50):
        settings = replace(SETTINGS, n=6, max_new_tokens=12, seed=seed)
        samples = sample(policy, tokenizer, [prompt], settings, tmp_path / f"{seed}.jsonl")
        talks = [[*prompt, {"role": "assistant", "content": text}] for text in samples["response"]]
        rows = [tokenize_conversation(tokenizer, talk) for talk in talks]
        if all(len(r.input_ids) - r.prompt_length == 13 for r in rows) and not samples["finished"].any():
            break
    rewards = judge.token_scores([r.input_ids for r in rows], [r.prompt_length for r in rows], readout=readout)
    rewards = [values[:12] for values in rewards]
    # One survivor needs no further draw of its own noise: it is the same candidate, cut or not, up to the cut.
    replayed = early_rejection(rewards, Schedule(((8, 1),)))
    schedule = Schedule(((8, 1),))
    _, live = sample_with_early_rejection(policy, tokenizer, judge, prompt, settings, schedule, readout=readout)
    assert live.pick == replayed.pick == int(np.argmax([values[7] for values in rewards]))
    assert replayed.tokens == 5 * 8 + 12 and 6 * 8 <= live.tokens <= 5 * 8 + 12


def test_every_survivor_goes_on_with_its_own_cache(policy, judge, tokenizer, prompt, monkeypatch):
    # Up to the first cut candidates are drawn and differ; from there on they take the most probable token. Then each
    # must have written what an uncached model writes behind the same beginning.
    real, calls, kept = rejection._continue, [], []

    def sharper(policy, tokenizer, start, sequences, running, tokens, settings, cache):
        settings = replace(settings, temperature=1.0 if not calls else 1e-4)
        calls.append(list(running))
        found = real(policy, tokenizer, start, sequences, running, tokens, settings, cache)
        kept.append([list(ids) for ids in sequences])
        return found

    monkeypatch.setattr(rejection, "_continue", sharper)
    policy = copy.deepcopy(policy)
    for name, value in policy.named_parameters():  # let what stands far back matter: an untrained model forgets it
        value.data *= 30 if "v_proj" in name or "o_proj" in name else 1
    settings = SamplingSettings(n=8, max_new_tokens=24)
    sample_with_early_rejection(policy, tokenizer, judge, prompt, settings, Schedule(((8, 4), (14, 3))))
    assert [len(running) for running in calls][0] == 8 and len(calls) == 3
    assert len({tuple(kept[0][i]) for i in calls[1]}) > 1 and calls[1] != list(range(len(calls[1])))
    start = torch.tensor([prompt_ids(tokenizer, prompt)])
    for i in calls[2]:
        begun = torch.tensor([kept[0][i]])
        ids = torch.cat([start, begun], dim=1)
        wanted = policy.generate(input_ids=ids, generation_config=generation_config(tokenizer, 24 - len(kept[0][i])))
        wanted = wanted.sequences[0, start.shape[1] :].tolist()
        assert kept[2][i] == wanted[: len(kept[2][i])] and len(kept[2][i]) > 14


def test_what_was_generated_is_what_the_schedule_allows(policy, judge, tokenizer, prompt):
    schedule = Schedule(((6, 5), (12, 2)))
    response, used = sample_with_early_rejection(policy, tokenizer, judge, prompt, SETTINGS, schedule)
    assert used.tokens <= 7 * 6 + 3 * 12 + 2 * 40
    assert response.tokens <= 40 and (response.finished or response.tokens == 40)


def test_a_prefix_has_the_reward_of_its_last_token(judge, language, prompt):
    text = language.sample_responses(prompt[0]["content"], 1, np.random.default_rng(0))[0]
    tokens = judge.token_rewards([*prompt, {"role": "assistant", "content": text}])
    cut = text[: tokens[9].end]
    got = judge.score_prefixes(prompt, [cut, text], [False, True])
    np.testing.assert_allclose(got, [tokens[9].reward, tokens[-1].reward], atol=1e-5)
