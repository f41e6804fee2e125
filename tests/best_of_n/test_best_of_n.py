"""Expectations against all subsets, outcomes of labelled responses."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrm_lib import runtime
from icrm_lib.best_of_n.picks import (
    Pool,
    best_of_n_curve,
    best_of_n_kl,
    expected_best_of_n,
    final_answer,
    load_outcomes,
    measure_picks,
    outcome_accuracy,
    pick_weights,
    sample_pool,
    win_tie_lose,
)
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import small_llama
from icrm_lib.profiles import load_profile


def by_all_subsets(scores, values, n):
    """The definition: mean over all n-subsets of the mean value of those that share the highest score."""
    results = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(scores[i] for i in subset)
        results.append(np.mean([values[i] for i in subset if scores[i] == best]))
    return float(np.mean(results))


@given(st.lists(st.tuples(st.integers(-2, 2), st.floats(-5, 5)), min_size=1, max_size=8), st.data())
def test_expectation_is_the_mean_over_all_subsets_ties_shared(candidates, data):
    scores, values = zip(*candidates, strict=True)
    n = data.draw(st.integers(1, len(scores)))
    assert expected_best_of_n(scores, values, n) == pytest.approx(by_all_subsets(scores, values, n), abs=1e-9)


def test_best_of_one_is_the_policy_and_best_of_all_is_the_maximum():
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=64), rng.normal(size=64)
    assert expected_best_of_n(scores, values, 1) == pytest.approx(values.mean(), abs=1e-12)
    assert expected_best_of_n(scores, values, 64) == pytest.approx(values[scores.argmax()], abs=1e-12)
    assert expected_best_of_n(np.zeros(64), values, 64) == pytest.approx(values.mean(), abs=1e-12)


@pytest.mark.parametrize("count", [1, 3, 1000, 20000])
def test_pick_probabilities_add_up_at_any_size(count):
    scores = np.random.default_rng(1).integers(0, 50, count)
    for n in {1, min(2, count), count // 2 or 1, count}:
        weights = pick_weights(scores, n)
        assert weights.sum() == pytest.approx(1, abs=1e-9) and weights.min() >= 0


def test_expectations_agree_with_drawing():
    rng = np.random.default_rng(2)
    scores, values = rng.integers(0, 4, 12), rng.normal(size=12)
    drawn = []
    for _ in range(20000):
        subset = rng.permutation(12)[:5]
        drawn.append(rng.choice(values[subset[scores[subset] == scores[subset].max()]]))
    error = np.std(drawn) / np.sqrt(len(drawn))
    assert abs(np.mean(drawn) - expected_best_of_n(scores, values, 5)) < 5 * error


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match=r"n 0: must be 1..2"):
        expected_best_of_n([1, 2], [1, 2], 0)
    with pytest.raises(ValueError, match=r"n 3: must be 1..2"):
        expected_best_of_n([1, 2], [1, 2], 3)
    with pytest.raises(ValueError, match="candidate 1 has a score that is not finite"):
        pick_weights([1, float("nan")], 1)
    with pytest.raises(ValueError, match="2 scores but 1 values"):
        expected_best_of_n([1, 2], [1], 1)


def test_the_curve_has_a_row_a_measure_and_n_with_its_kl():
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(30, 16))
    gold = scores + rng.normal(size=(30, 16))
    curve = best_of_n_curve(scores, {"gold": gold, "proxy": scores}, [1, 4, 16])
    assert curve["n"].tolist() == [1, 1, 4, 4, 16, 16] and curve["kl"].iloc[0] == 0
    assert curve["kl"].iloc[-1] == pytest.approx(np.log(16) - 15 / 16) == best_of_n_kl(16)
    by = curve.set_index(["measure", "n"])
    assert by.loc[("proxy", 16), "value"] == pytest.approx(scores.max(1).mean())
    assert by.loc[("gold", 1), "value"] == pytest.approx(gold.mean())
    assert (curve["low"] < curve["value"]).all() and (curve["value"] < curve["high"]).all()


def test_win_tie_and_lose_add_up_and_a_margin_ties():
    ours, theirs = np.array([3.0, 1, 2, 5]), np.array([1.0, 2, 2, 4.9])
    shares = win_tie_lose(ours, theirs)
    assert [shares[k].value for k in ("win", "tie", "lose")] == [0.5, 0.25, 0.25]
    assert [win_tie_lose(ours, theirs, margin=0.2)[k].value for k in ("win", "tie", "lose")] == [0.25, 0.5, 0.25]


def test_outcomes_are_read_and_bad_rows_named(tmp_path):
    path = tmp_path / "math.jsonl"
    rows = [
        {"prompt": "1 + 1", "responses": ["2", "3"], "correct": [True, False]},
        {"prompt": "1 + 2", "responses": ["3"], "correct": [True, False]},
        {"prompt": "1 + 3", "responses": ["4"]},
        {"prompt": "1 + 4", "responses": [" "], "correct": [True]},
        {"prompt": "1 + 5", "responses": ["6"], "correct": ["yes"]},
        {"prompt": "1 + 6", "responses": ["7", "8"], "correct": [1, 0]},
    ]
    path.write_text("\n".join([*map(json.dumps, rows), "{", ""]))
    frame, refused = load_outcomes(path)
    assert frame["prompt"].tolist() == [0, 0, 1, 1] and frame["correct"].tolist() == [True, False, True, False]
    assert frame["conversation"][3] == [{"role": "user", "content": "1 + 6"}, {"role": "assistant", "content": "8"}]
    assert [text.split(":")[1] for text in refused] == ["2", "3", "4", "5", "7"]
    assert "missing key 'correct'" in refused[1]
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="no usable row"):
        load_outcomes(path)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("She has 13 * 2 = $<<13*2=26>>26\nA: 26", "26"),
        ("so 1,200.00 in all", "1200"),
        (r"hence \boxed{-3.50}, not 7", "-3.5"),
        (r"thus \boxed{x^{2}} no, \boxed{\pi}", r"\pi"),
        ("It is\nParis ", "paris"),
        ("10", "10"),
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"so \boxed{ (1, 2) }", "(1,2)"),
        ("it is 10-3", "3"),
        ("a quarter: .25", "0.25"),
        ("so \u22123", "-3"),
        ("-0", "0"),
        (r"\boxed{never closed 7", "7"),
        ("", ""),
    ],
)
def test_a_solution_ends_on_its_answer(response, answer):
    assert final_answer(response) == answer


def test_pick_majority_and_oracle_are_counted_by_prompt():
    rows = pd.DataFrame(
        {
            "prompt": [0, 0, 0, 1, 1, 1, 2, 2],
            "response": ["A: 5", "A: 5", "A: 6", "A: 1", "A: 2", "A: 2", "A: 3", "A: 4"],
            "correct": [True, True, False, True, False, False, False, True],
        }
    )
    found = outcome_accuracy(rows, [0, 1, 2, 5, 1, 1, 7, 7])
    assert found["value"].to_dict() == pytest.approx(
        {"mean": (2 / 3 + 1 / 3 + 1 / 2) / 3, "majority": (1 + 0 + 0.5) / 3, "pick": (0 + 1 + 0.5) / 3, "oracle": 1.0}
    )
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()
    with pytest.raises(ValueError, match="2 scores but 8 responses"):
        outcome_accuracy(rows, [1, 2])


GSM8K = runtime.project_root().parent / "shared" / "data" / "gsm8k_best_of_6.jsonl"


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"needs {GSM8K.name} beside the project, in ../shared/data")
def test_real_outcomes_are_read_and_a_perfect_scorer_is_the_oracle():
    rows, refused = load_outcomes(GSM8K)
    assert rows["prompt"].nunique() > 600 and len(refused) < 10
    found = outcome_accuracy(rows, rows["correct"].to_numpy(dtype=float))["value"]
    assert found["pick"] == found["oracle"] > found["majority"] > found["mean"]


# On the testbed


@pytest.fixture
def pool():
    """Four prompts, 64 candidates; the gold score is decided by the first token, the length by the candidate."""
    rng = np.random.default_rng(0)
    gold, lengths = rng.integers(-3, 4, (4, 64)).astype(float), rng.integers(80, 100, (4, 64))
    rows = [[9, *[int(g) + 3] * n] for g, n in zip(gold.ravel(), lengths.ravel(), strict=True)]
    return Pool(rows, [1] * len(rows), gold, lengths, np.array([True, True, False, False]))


def from_the_first_token(rows, starts):
    return [np.array(row[start:], dtype=float) for row, start in zip(rows, starts, strict=True)]


def test_a_perfect_reward_model_picks_the_best_and_loses_nothing_by_stopping_early(pool):
    found = measure_picks(pool, from_the_first_token)
    best = pool.gold[2:].max(1)
    np.testing.assert_allclose(found["gold"]["64"], best)
    np.testing.assert_allclose(found["gold"]["1"], pool.gold[2:].mean(1), atol=1e-4)
    assert [len(found["curve"]), found["curve"][-1]] == [64, best.mean()] and np.all(np.diff(found["curve"]) > -1e-9)
    assert [row[0] for row in found["picks"]] == best.tolist()
    half = found["early"]["50%"]
    assert half["share"] < 0.52 and half["loss"] == [0, 0]
    assert np.all(np.array(half["same_tokens"]) <= np.array(half["full"]) + 1e-9)
    assert sum(found["pick_lengths"]) == pytest.approx(1, abs=1e-3)


def test_a_model_that_knows_only_at_the_end_loses_by_stopping_early(pool):
    def at_the_end(rows, starts):
        noise = np.random.default_rng(1)
        values = from_the_first_token(rows, starts)
        return [np.append(noise.normal(size=len(v) - 1), v[-1]) for v in values]

    found = measure_picks(pool, at_the_end)
    assert found["gold"]["64"] == pool.gold[2:].max(1).tolist()
    assert np.mean(found["early"]["40%"]["loss"]) > 0.2
    assert np.mean(found["early"]["40%"]["gold"]) < np.mean(found["early"]["40%"]["full"])


def test_a_pool_is_sampled_once_and_knows_its_gold_scores(tmp_path, monkeypatch, tokenizer, language):
    folder = tmp_path / "policy"
    small_llama(tokenizer, hidden_size=16, layers=1, heads=2, max_length=256, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    profile = load_profile("smoke")
    workspace = Workspace(profile, base_model=str(folder), folder=tmp_path)
    monkeypatch.setattr("icrm_lib.best_of_n.picks.sample", drawn_from(language))
    pool = sample_pool(workspace, candidates=6, limit=2)
    assert pool.gold.shape == pool.lengths.shape == (4, 5) and pool.validation.tolist() == [True] * 2 + [False] * 2
    texts = [tokenizer.decode(row[start:-1]) for row, start in zip(pool.rows, pool.starts, strict=True)]
    talk = [{"role": "user", "content": language.split_prompts()[1][0]}, {"role": "assistant", "content": texts[0]}]
    assert pool.gold[0, 0] == language.gold_score(talk)
    assert [
        len(row) - start for row, start in zip(pool.rows, pool.starts, strict=True)
    ] == pool.lengths.ravel().tolist()


def drawn_from(language):
    """A stand-in for sampling from an untrained policy, whose responses would have no gold score."""

    def draw(model, tokenizer, prompts, settings, path):
        rng = np.random.default_rng(0)
        rows = []
        for i, prompt in enumerate(prompts):
            for j, text in enumerate(language.sample_responses(prompt[0]["content"], settings.n, rng)):
                finished = (i, j) != (1, 3)  # one was cut by the limit
                rows.append({"prompt": i, "index": j, "response": text, "tokens": 9, "finished": finished})
        return pd.DataFrame(rows)

    return draw


def test_a_prompt_whose_responses_never_end_is_named(tmp_path, monkeypatch, tokenizer, language):
    folder = tmp_path / "policy"
    small_llama(tokenizer, hidden_size=16, layers=1, heads=2, max_length=256, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    workspace = Workspace(load_profile("smoke"), base_model=str(folder), folder=tmp_path)
    monkeypatch.setattr(
        "icrm_lib.best_of_n.picks.sample",
        lambda *_: pd.DataFrame({"prompt": [0], "index": 0, "response": "a", "finished": True}),
    )
    with pytest.raises(ValueError, match="no response to .* ended within 128 tokens"):
        sample_pool(workspace, candidates=1, limit=1)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        win_tie_lose(np.array([1.0, np.nan]), np.array([0.0, 0.0]))
