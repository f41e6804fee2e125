"""Accuracy and its clustered interval, and token agreement, on cases whose answer is known."""

import numpy as np
import pytest

from icrm_lib.benchmarks import pair_accuracy, token_agreement


def test_accuracy_counts_strictly_higher_scores():
    estimate = pair_accuracy([1, 2, 3, 4], [0, 2, 4, 1], ["a", "b", "c", "d"])
    assert estimate.value == 0.5  # a tie is no win
    assert estimate.low <= 0.5 <= estimate.high and estimate.low < estimate.high


def test_interval_covers_the_truth_at_its_rate_when_pairs_cluster():
    """200 draws of 40 prompts x 5 pairs, accuracy varying by prompt around 0.7: about 95 % of intervals cover it."""
    rng = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(200):
        rates = np.clip(0.7 + 0.25 * rng.choice([-1, 1], 40), 0, 1)
        right = rng.random((40, 5)) < rates[:, None]
        estimate = pair_accuracy(right.ravel(), np.full(200, 0.5), np.repeat(np.arange(40), 5), resamples=400)
        covered += estimate.low <= 0.7 <= estimate.high
        half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 200)
        naive += abs(right.mean() - 0.7) <= half
    assert 0.90 <= covered / 200 <= 0.99
    assert naive < covered  # ignoring the clusters is too sure of itself


def test_interval_is_the_same_for_the_same_seed_and_for_reordered_pairs():
    rng = np.random.default_rng(1)
    chosen, rejected, prompts = rng.normal(size=60), rng.normal(size=60), rng.integers(0, 12, 60)
    order = rng.permutation(60)
    assert pair_accuracy(chosen, rejected, prompts) == pair_accuracy(chosen[order], rejected[order], prompts[order])


def test_bad_scores_are_named():
    with pytest.raises(ValueError, match="pair 1"):
        pair_accuracy([1, float("nan")], [0, 0], ["a", "b"])
    with pytest.raises(ValueError, match="at least one"):
        pair_accuracy([], [], [])


def test_token_agreement_on_known_orders():
    truth = [np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.6, 0.7])]
    assert token_agreement([10 * t for t in truth], truth) == pytest.approx({"overall": 1.0, "within": 1.0})
    assert token_agreement([-t for t in truth], truth) == pytest.approx({"overall": -1.0, "within": -1.0})
    shifted = [10 * truth[0] + 100, truth[1]]  # right within each response, wrong between them
    result = token_agreement(shifted, truth)
    assert result["within"] == pytest.approx(1.0) and result["overall"] < 0.5
    with pytest.raises(ValueError, match="response 1"):
        token_agreement([truth[0], truth[1][:-1]], truth)
