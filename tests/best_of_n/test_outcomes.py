"""What picks are worth: exactly, under a judge, and where the answer is known."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrm_lib import runtime
from icrm_lib.best_of_n import (
    best_of_n_kl,
    expected_best_of_n,
    load_outcomes,
    outcome_accuracy,
    pick_weights,
    win_tie_lose,
)


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


def test_the_bound_on_the_divergence_grows_from_nothing():
    assert best_of_n_kl(1) == 0 and best_of_n_kl(16) == pytest.approx(np.log(16) - 15 / 16)


def test_win_tie_and_lose_add_up_and_a_margin_ties():
    ours, theirs = np.array([3.0, 1, 2, 5]), np.array([1.0, 2, 2, 4.9])
    shares = win_tie_lose(ours, theirs)
    assert [shares[k].value for k in ("win", "tie", "lose")] == [0.5, 0.25, 0.25]
    assert [win_tie_lose(ours, theirs, margin=0.2)[k].value for k in ("win", "tie", "lose")] == [0.25, 0.5, 0.25]


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        win_tie_lose(np.array([1.0, np.nan]), np.array([0.0, 0.0]))


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
