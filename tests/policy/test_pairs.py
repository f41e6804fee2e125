"""Pairs from samples: the best against the worst of a prompt, and what makes none."""

import pandas as pd
import pytest

from icrm_lib.policy import pairs_from_samples, train_dpo
from icrm_lib.profiles import RewardModelSettings


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
