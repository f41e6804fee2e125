"""Measures of token rewards: known ones for what is exact."""

import numpy as np
import pytest

from icrm_lib.phase import MEASURES, measure
from icrm_lib.phase.measured import exact_rewards


def test_exact_rewards_reach_what_can_be_reached(short):
    responses, _ = short
    value = measure(exact_rewards(responses, [known.values for known in responses.truth]), responses)
    score = measure(exact_rewards(responses, [known.clause_scores for known in responses.truth]), responses)
    expected = measure(exact_rewards(responses, [known.scores for known in responses.truth]), responses)
    assert set(value) == set(score) == set(MEASURES)
    assert value["agreement_top"] == value["change_auc"] == value["change_auc_unlikely"] == pytest.approx(1)
    assert expected["accuracy"] == 1 and expected["agreement_expected"] == pytest.approx(1)
    assert score["accuracy"] == 1 and score["agreement_score"] == pytest.approx(1)
    assert value["accuracy"] < 1 and score["agreement_top"] < 1  # neither is the other
    assert np.isnan(score["change_ratio"])  # it moves nowhere else


def test_noise_reaches_nothing(short, rng):
    responses, _ = short
    found = measure(rng.normal(size=responses.mask.shape), responses)
    chance = {"accuracy": 0.5, "agreement_expected": 0, "agreement_score": 0, "change_ratio": 1, "change_auc": 0.5}
    assert all(found[name] == pytest.approx(level, abs=0.08) for name, level in chance.items())
