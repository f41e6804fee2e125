"""Accuracy on one's own pairs and its intervals, lengths held even, calibration, on cases with a known answer."""

import numpy as np
import pandas as pd
import pytest

from icrm_lib.measures.pairs import accuracy_by, length_controlled_accuracy, pair_accuracy, preference_calibration


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


def test_calibration_by_hand():
    """Confidence 3/4 and right in three of four pairs: nothing to correct. Twice as sure: temperature 2."""
    difference = np.log(3) * np.array([1, 1, 1, -1])
    result = preference_calibration(difference + 5, np.full(4, 5))
    assert result.table.to_dict(orient="list") == {
        "confidence": [pytest.approx(0.75)],
        "accuracy": [0.75],
        "pairs": [4],
    }
    assert result.error == pytest.approx(0, abs=1e-12)
    assert result.brier == pytest.approx((3 / 16 + 9 / 16) / 4)
    assert result.log_loss == pytest.approx((3 * np.log(4 / 3) + np.log(4)) / 4)
    assert result.temperature == pytest.approx(1, rel=1e-9) and result.tempered_log_loss == pytest.approx(
        result.log_loss
    )
    sure = preference_calibration(2 * difference, np.zeros(4))
    assert sure.error == pytest.approx(0.9 - 0.75)  # sigmoid(2 log 3) = 9/10
    assert sure.temperature == pytest.approx(2, rel=1e-9)
    assert sure.tempered_log_loss == pytest.approx(result.log_loss) and sure.log_loss > result.log_loss


def test_calibration_bins_are_equally_wide_and_a_tie_is_half_right():
    confidences = np.array([0.5, 0.55, 0.72, 0.78, 0.95])
    signs = np.array([0, -1, 1, 1, 1])
    difference = np.where(signs, signs, 1) * np.log(confidences / (1 - confidences))
    table, error, *_ = preference_calibration([*difference, 1000], [0] * 6, bins=5)
    assert table.index.tolist() == pytest.approx([0.5, 0.7, 0.9]) and table["pairs"].tolist() == [2, 2, 2]
    assert table["confidence"].tolist() == pytest.approx([0.525, 0.75, 0.975])
    assert table["accuracy"].tolist() == [0.25, 1, 1]  # a tie and a wrong pair
    assert error == pytest.approx((0.275 + 0.25 + 0.025) / 3)
    assert preference_calibration([*difference, 1000], [0] * 6, bins=1).table["pairs"].tolist() == [6]


def test_calibration_of_a_simulated_preference_finds_its_temperature():
    rng = np.random.default_rng(0)
    margins = rng.normal(0, 1, 20_000)
    difference = 3 * margins * np.where(rng.random(20_000) < 1 / (1 + np.exp(-margins)), 1, -1)
    result = preference_calibration(difference, np.zeros(20_000))
    assert result.temperature == pytest.approx(3, rel=0.05) and result.error > 0.1
    tempered = preference_calibration(difference / result.temperature, np.zeros(20_000))
    assert tempered.error < 0.015 and tempered.temperature == pytest.approx(1, rel=1e-6)
    assert tempered.log_loss == pytest.approx(result.tempered_log_loss)
    for other in (0.95, 1.05):
        assert preference_calibration(difference / (other * result.temperature), np.zeros(20_000)).log_loss > (
            result.tempered_log_loss
        )


@pytest.mark.parametrize(
    ("difference", "temperature", "tempered"),
    [
        ([1, 2], 0, 0),  # none wrong: the surer the better
        ([1, 2, 0, 0], 0, np.log(2) / 2),
        ([-1, -2], np.inf, np.log(2)),  # worse than chance: better to say nothing
        ([0, 0], np.inf, np.log(2)),
        ([1, -1], np.inf, np.log(2)),
    ],
)
def test_calibration_without_a_best_temperature_gives_the_limit(difference, temperature, tempered):
    result = preference_calibration(difference, np.zeros(len(difference)))
    assert result.temperature == temperature and result.tempered_log_loss == pytest.approx(tempered)


def test_calibration_keeps_extreme_differences_finite():
    result = preference_calibration([1e4, -1e-6, 1e-300], [0, 0, 0])
    assert np.isfinite([result.error, result.brier, result.log_loss, result.temperature]).all()
    assert result.tempered_log_loss <= result.log_loss
    with pytest.raises(ValueError, match="bins=0: at least one"):
        preference_calibration([1], [0], bins=0)
    with pytest.raises(ValueError, match="got 1, 2"):
        preference_calibration([1], [0, 0])
    with pytest.raises(ValueError, match="pair 0 has a score that is not finite"):
        preference_calibration([np.nan], [0])
