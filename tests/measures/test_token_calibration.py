"""Token rewards read as values of prefixes."""

import math

import numpy as np
import pytest
from scipy.optimize import fsolve
from scipy.special import expit, logit

from icrm_lib.measures.tokens import token_calibration

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def test_the_logit_of_the_value_is_calibrated(truth):
    values = [known.values for known in truth]
    rewards = [logit(np.clip(array, 1e-5, 1 - 1e-5)) for array in values]
    result = token_calibration(rewards[:150], values[:150], rewards[150:], values[150:])
    assert result["error"] < 1e-4 and result["skill"] > 0.999 and result["brier"] < 1e-4
    assert result["slope"] == pytest.approx(np.concatenate(rewards[150:]).std(), rel=1e-3)
    # The value itself orders as well, but is no logit.
    assert token_calibration(values[:150], values[:150], values[150:], values[150:])["error"] > 0.02


def test_calibration_does_not_see_scale_and_shift(rng, truth):
    values = [known.values for known in truth]
    rewards = [4 * array + rng.normal(size=len(array)).round(1) for array in values]
    plain = token_calibration(rewards[:150], values[:150], rewards[150:], values[150:])
    assert 0.2 < plain["skill"] < 0.95 and plain["slope"] > 0
    for scale, shift in ((1e-3, 7), (250, -1e4), (-1, 0)):
        moved = [scale * array + shift for array in rewards]
        result = token_calibration(moved[:150], values[:150], moved[150:], values[150:])
        expected = plain | {"slope": math.copysign(plain["slope"], scale)}
        if scale < 0:  # groups are cut from the other end
            assert result.pop("error") == pytest.approx(expected.pop("error"), abs=0.01)
        assert result == pytest.approx(expected, abs=1e-6)


def test_calibration_solves_the_likelihood_equations(rng):
    rewards = rng.normal(3, 5, size=400)
    values = np.clip(expit(0.4 * rewards - 2) + rng.normal(0, 0.2, size=400), 0, 1)
    z = (rewards - rewards.mean()) / rewards.std()

    def score(params):
        excess = expit(params[0] + params[1] * z) - values
        return [excess.sum(), (excess * z).sum()]

    a, b = fsolve(score, [0, 1], xtol=1e-12)
    predicted = expit(a + b * z)
    result = token_calibration(
        [rewards], [values], [rewards[:100], rewards[100:]], [values[:100], values[100:]], bins=8
    )
    assert result["slope"] == pytest.approx(b, abs=1e-6)
    assert result["brier"] == pytest.approx(np.mean((predicted - values) ** 2), abs=1e-9)
    assert result["skill"] == pytest.approx(1 - result["brier"] / values.var(), abs=1e-9)
    bins = np.split(np.argsort(predicted), 8)  # 50 tokens each, no ties
    error = np.mean([abs(predicted[part].mean() - values[part].mean()) for part in bins])
    assert result["error"] == pytest.approx(error, abs=1e-8)


def test_calibration_by_hand():
    """Two rewards, so two numbers fit exactly: 0.2 and 0.8. The test responses have 0.3 and 0.6 instead."""
    fit = [np.array([-1.0, 1.0])], [np.array([0.2, 0.8])]
    rewards = [np.array([1.0, -1.0, -1.0]), np.array([-1.0])]
    values = [np.array([0.6, 0.3, 0.4]), np.array([0.2])]
    result = token_calibration(rewards, values, *fit)
    expected = {
        "error": (0.2 + 3 * 0.1) / 4,  # the three equal predictions share a group
        "brier": (0.2**2 + 0.1**2 + 0.2**2 + 0) / 4,
        "skill": 1 - 0.09 / (0.1**2 + 0.2**2 + 0.1**2 + 0.3**2),
        "slope": math.log(4),
    }
    assert result == pytest.approx(expected, abs=1e-8)
    assert token_calibration(rewards, values, *fit, bins=1)["error"] == pytest.approx(abs(1.4 - 1.5) / 4, abs=1e-8)


def test_calibration_of_rewards_that_say_nothing_or_everything(rng):
    values = [np.array([0.0, 0.1, 0.5]), np.array([1.0])]
    constant = [np.full(3, 0.1), np.full(1, 0.1)]
    other = [np.array([0.2, 0.2, 0.9, 0.3])]
    result = token_calibration([rng.normal(size=4)], other, constant, values)
    # The mean of the fit, 0.4, everywhere.
    assert result == pytest.approx({"error": 0.0, "brier": 0.085, "skill": 0.0, "slope": 0.0}, abs=1e-9)
    for n in range(2, 30):  # for some n the mean of n times 0.1 is not 0.1, and the standard deviation not 0
        flat = [np.full(n, 0.1)]
        result = token_calibration([rng.normal(size=4)], other, flat, [np.linspace(0, 0.8, n)])
        assert result == pytest.approx({"error": 0.0, "brier": 0.085, "skill": 0.0, "slope": 0.0}, abs=1e-9)
    sides = [np.array([0.0, 0.0, 1.0, 1.0])]
    result = token_calibration(sides, sides, sides, sides)
    assert result == pytest.approx({"error": 0, "brier": 0, "skill": 1, "slope": result["slope"]}, abs=1e-3)
    assert 5 < result["slope"] <= 50
    for level in (0.0, 1.0):
        flat = [np.full(4, level)]
        for rewards in (sides, [np.zeros(4)]):
            result = token_calibration(rewards, flat, rewards, flat)
            assert result["error"] < 1e-6 and result["brier"] < 1e-6 and math.isnan(result["skill"])


def test_calibration_refuses_what_is_no_probability():
    good, bad = [np.array([0.5]), np.array([0.1, 1.0])], [np.array([0.5]), np.array([0.1, 1.5])]
    for arguments in ((good, bad, good, good), (good, good, good, bad)):
        with pytest.raises(ValueError, match=r"response 1 has 1.5 in (fit_)?values at token 1: must be in \[0, 1\]"):
            token_calibration(*arguments)
    with pytest.raises(ValueError, match="bins 0: must be >= 1"):
        token_calibration(good, good, good, good, bins=0)
