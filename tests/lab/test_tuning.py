"""Tuning: every method the same search, which ends where all neighbours of the best trial were tried."""

import math
from dataclasses import fields

import pytest
from tiny import micro_grid

from icrm_lib import records
from icrm_lib.lab import cell as cell_module
from icrm_lib.lab.cell import cell_config
from icrm_lib.lab.cells import EVERY_METHOD, TRUTH, TUNING_SEEDS, WEIGHTS, Cell, studies, tuned_as
from icrm_lib.lab.held_out import VALIDATION
from icrm_lib.lab.inputs import settings_of
from icrm_lib.lab.tuning import (
    FIRST_TRIALS,
    MOST_TRIALS,
    RATES,
    Trial,
    cells_of,
    first_trials,
    knob_of,
    tune,
    tuned_names,
)
from icrm_lib.profiles import RewardModelSettings

MICRO = micro_grid()
pytestmark = pytest.mark.usefixtures("own_root")
EVERY = [cell for cells in studies().values() for cell in cells]


@pytest.fixture
def surface(monkeypatch):
    """Validation accuracy as a function of the settings, in the place of trained models; counts what was asked."""
    asked = []

    def set_to(accuracy):
        def fake(profile, cell, settings, purpose):
            asked.append(cell)
            metrics = {"accuracy": {VALIDATION: {"right": [accuracy(settings)], "count": [1]}}}
            return {"config": cell_config(profile, cell, settings), "metrics": metrics}

        monkeypatch.setattr(cell_module, "compute_cell", fake)
        return asked

    return set_to


def log_distance(value, best):
    return abs(math.log2(value / best))


def test_every_method_begins_with_the_same_rates_and_as_many_trials():
    ranges = set()
    for name in tuned_names():
        trials = [dict(trial.changes(knob_of(name))) for trial in first_trials(knob_of(name))]
        rates = {trial["learning_rate"] for trial in trials}
        assert len(trials) == FIRST_TRIALS and {1e-3, 2e-3, 4e-3, 8e-3} <= rates
        ranges.add(min(rates))
        assert max(rates) <= 0.011
    assert ranges == {1e-3}


def test_everything_that_is_trained_is_tuned_and_its_knob_is_a_setting():
    assert all(tuned_as(cell) in tuned_names() for cell in EVERY if cell.method not in (*TRUTH, WEIGHTS))
    assert {method.tuned_as for method in EVERY_METHOD.values()} - {""} <= {*tuned_names()}
    known = {item.name for item in fields(RewardModelSettings)}
    for method in EVERY_METHOD.values():
        if method.knob:
            assert method.knob.setting in known and list(method.knob.ladder) == sorted(set(method.knob.ladder))
            assert 0 < method.knob.first < len(method.knob.ladder) - 2 + 1
    assert {*TUNING_SEEDS}.isdisjoint({cell.seed for cell in EVERY})
    assert all(cell.is_trial for cell in cells_of("bt-double", Trial(9)))


def test_the_search_walks_to_a_best_trial_whose_neighbours_were_all_tried(surface, tmp_path):
    asked = surface(lambda s: -log_distance(s.learning_rate, 0.016) - log_distance(s.consistency_weight, 0.8))
    tuned = tune(MICRO, [Cell("icrm_entropy", 0)], folder=tmp_path, workers=0)
    assert tuned == {"icrm": {"learning_rate": 0.016, "consistency_weight": 0.8}}  # beyond where it began, both ways
    report = records.read_json(tmp_path / "tuning.json")["icrm"]
    assert report["chosen"] == tuned["icrm"] and report["inside"]
    tried = {(trial["learning_rate"], trial["consistency_weight"]) for trial in report["trials"]}
    assert {(0.008, 0.8), (0.032, 0.8), (0.016, 0.6), (0.016, 0.9)} <= tried
    trials, runs = len(report["trials"]), sum(trial["seeds"] for trial in report["trials"])
    assert trials <= MOST_TRIALS and len(asked) == len(set(asked)) == runs
    assert {trial["seeds"] for trial in report["trials"]} == {2, 6}
    assert max(report["trials"], key=lambda trial: trial["accuracy"])["seeds"] == 6
    tune(MICRO, [Cell("icrm", 0)], folder=tmp_path, workers=0)
    assert len(asked) == runs  # nothing is tried twice


def test_settings_that_fail_on_other_seeds_than_the_first_are_not_chosen(surface, tmp_path, monkeypatch):
    surface(lambda s: 0.0)
    whole = cell_module.compute_cell

    def fails_later(profile, cell, settings, purpose):
        record = whole(profile, cell, settings, purpose)
        good = {0.008: 0.9, 0.004: 0.8}.get(settings.learning_rate, 0.5)
        right = 0.1 if settings.learning_rate == 0.008 and cell.seed >= 102 else good
        record["metrics"]["accuracy"][VALIDATION]["right"] = [right]
        return record

    monkeypatch.setattr(cell_module, "compute_cell", fails_later)
    assert tune(MICRO, [Cell("bt", 0)], folder=tmp_path, workers=0) == {"bt": {"learning_rate": 0.004}}
    assert records.read_json(tmp_path / "tuning.json")["bt"]["inside"]  # of what is chosen, not of what looked best


def test_a_trial_that_diverges_gets_no_pair_right_and_stops_nothing(monkeypatch, tmp_path):
    def diverges(*_):
        raise FloatingPointError("the loss of step 3 is nan")

    monkeypatch.setattr(cell_module, "train", diverges)
    (trial,) = cells_of("bt", Trial(12), seeds=(100,))
    record = cell_module.compute_cell(MICRO, trial, settings_of(MICRO, trial, {}))
    assert record["metrics"]["diverged"] == "the loss of step 3 is nan"
    counts = record["metrics"]["accuracy"][VALIDATION]
    assert sum(counts["right"]) == 0 and sum(counts["count"]) == MICRO.data.validation_pairs
    with pytest.raises(FloatingPointError):  # a model of the evidence is another matter
        compared = Cell("bt", 0)
        cell_module.compute_cell(MICRO, compared, settings_of(MICRO, compared, {}))


def test_a_choice_on_the_edge_is_said_to_be_there(surface, tmp_path):
    surface(lambda s: s.learning_rate)
    tuned = tune(MICRO, [Cell("bt", 0), Cell("grm_sft", 0)], folder=tmp_path, workers=0)
    reports = records.read_json(tmp_path / "tuning.json")
    assert not reports["bt"]["inside"] or tuned["bt"]["learning_rate"] < max(RATES)
    assert all(len(report["trials"]) <= MOST_TRIALS for report in reports.values())
    surface(lambda s: -s.sft_weight)
    tune(MICRO, [Cell("grm_dpo", 0)], folder=tmp_path, workers=0)
    reports = records.read_json(tmp_path / "tuning.json")
    assert reports["grm_dpo"]["chosen"]["sft_weight"] == 0.001 and not reports["grm_dpo"]["inside"]
    assert set(reports) == {"bt", "grm_sft", "grm_dpo"}  # what was found before stays
