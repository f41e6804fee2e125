"""The grid as a list: names, seeds, studies, and the trials of tuning."""

import re
from dataclasses import fields, replace

import pytest
from tiny import micro_grid

from icrm_lib.lab.cells import COMPOSED, EVERY_METHOD, MAIN, TRUTH, WEIGHTS, Cell, studies, tuned_as, tuning_cells
from icrm_lib.lab.inputs import settings_of
from icrm_lib.methods import METHODS
from icrm_lib.profiles import RewardModelSettings

MICRO = micro_grid()
EVERY = [cell for cells in studies().values() for cell in cells]


def test_every_cell_has_a_name_of_its_own_and_settings_that_exist():
    unique = set(EVERY)
    assert len({cell.name for cell in unique}) == len(unique)
    for cell in unique:
        assert EVERY_METHOD[cell.method].label
        settings_of(MICRO, cell, {})


def test_the_main_comparison_has_ten_paired_seeds_and_every_other_at_least_five():
    for study, cells in studies().items():
        seeds = {}
        for cell in cells:
            if cell.method not in (*TRUTH, WEIGHTS):
                seeds.setdefault(replace(cell, seed=0), set()).add(cell.seed)
        least = {"main": 10, "sizes": 3}.get(study, 5)
        assert min(map(len, seeds.values())) >= least, study
        assert len({frozenset(value) for value in seeds.values()}) == (2 if study == "sizes" else 1), study
    assert {cell.method for cell in studies()["main"]} == {*MAIN, *TRUTH}


def test_every_method_is_in_the_grid_and_tuned_with_the_same_number_of_trials():
    assert set(METHODS) | set(COMPOSED) == {cell.method for cell in EVERY}
    assert {len(trials) for trials in tuning_cells().values()} == {4}
    trials = tuning_cells()
    assert all(tuned_as(cell) in trials for cell in EVERY if cell.method not in (*TRUTH, WEIGHTS))
    own = {name for name, method in EVERY_METHOD.items() if not method.tuned_as} - {*TRUTH, WEIGHTS}
    assert set(trials) == own | {"bt-double"}
    assert {method.tuned_as for method in EVERY_METHOD.values()} - {""} <= own
    known = {item.name for item in fields(RewardModelSettings)}
    assert {name for trials in tuning_cells().values() for t in trials for c in t for name, _ in c.changes} <= known


def test_tuning_seeds_are_no_seeds_of_the_evidence():
    tuning = {cell.seed for trials in tuning_cells().values() for trial in trials for cell in trial}
    assert tuning.isdisjoint({cell.seed for cell in EVERY})


def test_tuned_values_reach_the_method_its_variants_and_nobody_else():
    tuned = {"icrm": {"learning_rate": 0.5, "consistency_weight": 0.25}}
    for method in ("icrm", "icrm_entropy", "icrm_not_centered"):
        got = settings_of(MICRO, Cell(method, 0), tuned)
        assert (got.learning_rate, got.consistency_weight) == (0.5, 0.25)
    assert settings_of(MICRO, Cell("bt", 0), tuned).learning_rate == MICRO.reward_model.learning_rate
    swept = settings_of(MICRO, Cell("icrm", 0, changes=(("consistency_weight", 0.9),)), tuned)
    assert (swept.learning_rate, swept.consistency_weight) == (0.5, 0.9)


@pytest.mark.parametrize(("pairs", "epochs"), [(6, 2.0), (12, 2.0), (16, 1.5), (48, 1.0)])
def test_more_pairs_mean_fewer_passes(pairs, epochs):
    assert settings_of(MICRO, Cell("bt", 0, pairs=pairs), {}).epochs == epochs


@pytest.mark.parametrize(
    ("part", "value", "nearest"),
    [
        ("method", "icmr", "did you mean 'icrm'?"),
        ("generator", "exct", "did you mean 'exact'?"),
        ("data", "confused", "did you mean 'confounded'?"),
        ("base", "dubble", "did you mean 'double'?"),
    ],
)
def test_a_cell_refuses_a_name_that_does_not_exist(part, value, nearest):
    with pytest.raises(ValueError, match=re.escape(f"unknown {part} {value!r}; {nearest}")):
        Cell(**{"method": "icrm", "seed": 0, part: value})
