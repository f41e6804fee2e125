"""The grid as a list: names, seeds, studies."""

import re
from dataclasses import replace

import pytest
from tiny import micro_grid

from icrm_lib.lab.cells import COMPOSED, EVERY_METHOD, MAIN, TRUTH, WEIGHTS, Cell, studies
from icrm_lib.lab.inputs import settings_of
from icrm_lib.methods import METHODS

MICRO = micro_grid()
EVERY = [cell for cells in studies().values() for cell in cells]


def test_every_cell_has_a_name_of_its_own_and_settings_that_exist():
    unique = set(EVERY)
    assert len({cell.name for cell in unique}) == len(unique)
    for cell in unique:
        assert EVERY_METHOD[cell.method].label
        settings_of(MICRO, cell, {})


def test_the_main_comparison_has_sixteen_paired_seeds_and_every_other_at_least_five():
    for study, cells in studies().items():
        seeds = {}
        for cell in cells:
            if cell.method not in (*TRUTH, WEIGHTS):
                seeds.setdefault(replace(cell, seed=0), set()).add(cell.seed)
        least = {"main": 16, "best_of_n": 16}.get(study, 5)
        assert min(map(len, seeds.values())) >= least, study
        assert len({frozenset(value) for value in seeds.values()}) == (2 if study == "sizes" else 1), study
    assert {cell.method for cell in studies()["main"]} == {*MAIN, *TRUTH}


def test_every_method_is_in_the_grid():
    assert set(METHODS) | set(COMPOSED) == {cell.method for cell in EVERY}


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
