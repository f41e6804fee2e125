"""Predictions: effects with intervals, regressions that leave one language out, and the choice by rule."""

import copy

import numpy as np
import pytest

from icrm_lib.phase import MEASURES, WEIGHTINGS, phase_languages
from icrm_lib.phase.prediction import (
    chosen_languages,
    largest_effects,
    predicted_effects,
    regression,
    regressions,
    reliability,
    verdicts,
)


@pytest.fixture(scope="module")
def stored():
    """Records of all languages whose effect is twice a control, plus noise between seeds."""
    rng = np.random.default_rng(0)
    found = {}
    for name in phase_languages():
        control, other = rng.normal(size=2)
        levels = {"uniform": 0.5, "probability": 0.5 + 2 * control, "shuffled": 0.4, "inverted": 0.3}
        tables = {w: {m: (levels[w] + rng.normal(scale=0.01, size=8)).tolist() for m in MEASURES} for w in WEIGHTINGS}
        theory = {"correlation": [0.5, 0.7]}
        controls = {"known": {"a": control, "b": other}, "measurable": {"b": other, "constant": 1.0}}
        found[name] = controls | {"few": tables, "many": tables, "theory": theory, "theory_of_states": theory}
    return found


@pytest.fixture(scope="module")
def effects(stored):
    return predicted_effects(stored)


def test_effects_have_intervals_and_ceilings(stored, effects):
    for name, record in stored.items():
        one = effects[name]["few"]["accuracy"]
        assert one["low"] < one["effect"] < one["high"] and one["high"] - one["low"] < 0.1
        assert one["effect"] == pytest.approx(2 * record["known"]["a"], abs=0.02)
        assert one["effect"] == pytest.approx(one["probability"] - one["uniform"])
        assert one["ceiling"] == pytest.approx(max(0.5, 0.5 + 2 * record["known"]["a"]), abs=0.02)


def test_an_effect_counts_where_its_interval_leaves_out_nothing(effects):
    found = verdicts(effects)["few"]["change_auc"]
    sizes = [one["few"]["change_auc"]["effect"] for one in effects.values()]
    assert found["helps"] == pytest.approx(sum(size > 0.01 for size in sizes), abs=2)
    assert found["hurts"] == pytest.approx(sum(size < -0.01 for size in sizes), abs=2)
    assert sum(found.values()) == 54


def test_what_differs_between_languages_is_reliable_and_noise_is_not(stored):
    assert reliability(stored)["few"]["accuracy"] > 0.99
    rng, same = np.random.default_rng(1), {name: {"few": {}, "many": {}} for name in stored}
    for record in same.values():
        for regime in record:
            record[regime] = {w: {m: rng.normal(size=8).tolist() for m in MEASURES} for w in WEIGHTINGS}
    assert abs(reliability(same)["few"]["accuracy"]) < 0.6


def test_the_control_that_makes_the_effect_is_found(stored, effects):
    found = regressions(stored, effects)["few"]["change_auc"]
    spread = np.std([record["known"]["a"] for record in stored.values()])
    assert found["known"]["a"]["slope"] == pytest.approx(2 * spread, rel=0.02)
    assert found["known"]["a"]["r2_left_out"] > 0.99 > 0.2 > found["known"]["b"]["r2"]
    assert found["known"]["all"]["r2"] >= found["known"]["a"]["r2"]
    assert set(found["measurable"]) == {"b", "all"}  # a control that does not vary foretells nothing


def test_left_out_is_left_out(rng):
    x, y = rng.normal(size=(12, 2)), rng.normal(size=12)
    squares, baseline = 0.0, 0.0
    for i in range(12):
        others = np.delete(np.arange(12), i)
        design = np.column_stack([np.ones(11), x[others]])
        coefficients = np.linalg.lstsq(design, y[others], rcond=None)[0]
        squares += (y[i] - np.r_[1, x[i]] @ coefficients) ** 2
        baseline += (y[i] - y[others].mean()) ** 2
    assert regression(x, y)["r2_left_out"] == pytest.approx(1 - squares / baseline)
    with pytest.raises(ValueError, match="3 observations for 2 slopes"):
        regression(x[:3], y[:3])


def test_extremes_and_middles_are_chosen(stored, effects):
    effects = copy.deepcopy(effects)
    for rank, name in enumerate(sorted(effects, key=lambda name: stored[name]["known"]["a"])):
        for measure in MEASURES:  # of both deciding measures alike, so that the second takes the next ones
            effects[name]["many"][measure]["effect"] = float(rank)
    chosen = chosen_languages(effects)
    ranks = [int(effects[name]["many"]["accuracy"]["effect"]) for name in chosen]
    assert ranks == [0, 1, 53, 52, 26, 27, 2, 3, 51, 50, 25, 28]
    assert [int(effects[name]["many"]["accuracy"]["effect"]) for name in largest_effects(effects, chosen)] == [
        53,
        52,
        51,
        50,
    ]
