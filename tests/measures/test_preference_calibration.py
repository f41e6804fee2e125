"""Score differences read as probabilities."""

import numpy as np
import pytest

from icrm_lib.measures.pairs import preference_calibration


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
