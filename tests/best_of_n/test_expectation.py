"""Expectations against all subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icrm_lib.best_of_n import best_of_n_kl, expected_best_of_n, pick_weights


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
