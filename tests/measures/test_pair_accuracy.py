"""Accuracy on pairs: intervals, groups and lengths."""

import numpy as np
import pandas as pd
import pytest

from icrm_lib.measures.pairs import accuracy_by, length_controlled_accuracy, pair_accuracy


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


def test_accuracy_by_group_is_the_accuracy_of_its_pairs():
    rng = np.random.default_rng(2)
    chosen, rejected, prompts = rng.normal(size=60), rng.normal(size=60), rng.integers(0, 12, 60)
    groups = rng.choice(["code", "chat", "maths"], 60)
    groups[:2] = ["maths", "code"]
    table = accuracy_by(chosen, rejected, prompts, groups)
    assert list(table.columns) == ["pairs", "accuracy", "low", "high"] and table.index.name == "group"
    assert list(table.index) == ["maths", "code", "chat", "all"]
    for name, row in table.iterrows():
        members = (groups == name) | (name == "all")
        assert row["pairs"] == members.sum()
        assert tuple(row.iloc[1:]) == pair_accuracy(chosen[members], rejected[members], prompts[members])


def test_groups_are_compared_as_text_and_none_is_lost():
    table = accuracy_by([1, 0, 1], [0, 1, 0], "aab", [None, 1, None])
    assert table["accuracy"].to_dict() == {"None": 1.0, "1": 0.0, "all": pytest.approx(2 / 3)}
    assert tuple(table.loc["1"]) == (1, 0, 0, 0)  # a single prompt: the point itself
    with pytest.raises(ValueError, match="pair 1 is of group 'all', the name of the last row; rename it"):
        accuracy_by([1, 0], [0, 1], "ab", ["x", "all"])
    with pytest.raises(ValueError, match="got 2, 2, 2, 1"):
        accuracy_by([1, 0], [0, 1], "ab", ["x"])


def test_length_controlled_accuracy_by_hand():
    """Three pairs whose chosen response is longer (one won), two where it is shorter (both won), one as long (lost)."""
    lengths = [9, 8, 7, 1, 2, 5], [1, 2, 3, 4, 5, 5]
    table = length_controlled_accuracy([1, 0, 0, 1, 1, 0], [0] * 3 + [0, 0, 0], *lengths, range(6))
    assert table["pairs"].to_dict() == {
        "chosen longer": 3,
        "chosen shorter": 2,
        "equal length": 1,
        "balanced": 5,
        "all": 6,
        "pick the longer": 6,
    }
    assert table["accuracy"].tolist() == pytest.approx([1 / 3, 1, 0, 2 / 3, 1 / 2, 1 / 2])
    assert table.loc["balanced", "low"] < 2 / 3 < table.loc["balanced", "high"]
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()


def test_a_model_that_picks_the_longer_gets_one_half():
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(5, 100, 300), rng.integers(1, 60, 300)
    table = length_controlled_accuracy(chosen, rejected, chosen, rejected, rng.integers(0, 90, 300))
    assert table.loc["balanced", ["accuracy", "low", "high"]].tolist() == [0.5, 0.5, 0.5]
    assert table.loc["all"].equals(table.loc["pick the longer"]) and table.loc["all", "accuracy"] > 0.7


def test_repeating_the_pairs_of_a_prompt_does_not_narrow_the_interval():
    rng = np.random.default_rng(4)
    scores, lengths, prompts = rng.normal(size=(2, 50)), rng.integers(1, 9, (2, 50)), rng.integers(0, 20, 50)
    once = length_controlled_accuracy(*scores, *lengths, prompts)
    thrice = length_controlled_accuracy(*np.tile(scores, 3), *np.tile(lengths, 3), np.tile(prompts, 3))
    pd.testing.assert_frame_equal(once.drop(columns="pairs"), thrice.drop(columns="pairs"))
    assert once.loc["balanced", "high"] - once.loc["balanced", "low"] > 0.1


def test_interval_of_the_balanced_accuracy_covers_the_truth_at_its_rate():
    """200 draws of 40 prompts x 5 pairs, three in four chosen the longer; accuracy 0.8 on these, 0.4 on the others."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        longer = rng.random((40, 5)) < 0.75
        rates = np.where(longer, 0.8, 0.4) + 0.15 * rng.choice([-1, 1], (40, 1))
        right, size = (rng.random((40, 5)) < rates).ravel(), longer.ravel()
        prompts = np.repeat(np.arange(40), 5)
        table = length_controlled_accuracy(right, np.full(200, 0.5), size, ~size, prompts, resamples=200)
        covered += table.loc["balanced", "low"] <= 0.6 <= table.loc["balanced", "high"]
    assert 0.90 <= covered / 200 <= 0.99


def test_balanced_needs_both_lengths():
    table = length_controlled_accuracy([1, 1], [0, 2], [5, 6], [1, 1], "ab")
    assert table.loc["chosen longer", "accuracy"] == table.loc["all", "accuracy"] == 0.5
    for name, pairs in (("chosen shorter", 0), ("equal length", 0), ("balanced", 2)):
        assert table.loc[name, "pairs"] == pairs and table.loc[name, ["accuracy", "low", "high"]].isna().all()
    with pytest.raises(ValueError, match="pair 1 has lengths 6.0 and -1.0; give finite ones from 0 on"):
        length_controlled_accuracy([1, 1], [0, 2], [5, 6], [1, -1], "ab")
    with pytest.raises(ValueError, match="pair 0 has lengths nan"):
        length_controlled_accuracy([1, 1], [0, 2], [np.nan, 6], [1, 1], "ab")
    with pytest.raises(ValueError, match="pair 1 has a score that is not finite: 1.0 against inf"):
        length_controlled_accuracy([1, 1], [0, np.inf], [5, 6], [1, 1], "ab")
    with pytest.raises(ValueError, match="got 2, 2, 2, 1, 2"):
        length_controlled_accuracy([1, 1], [0, 2], [5], [1, 1], "ab")
