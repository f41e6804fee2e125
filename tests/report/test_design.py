"""How many seeds a comparison takes: the formula against simulation, and the plan from the spread of records."""

import numpy as np
import pytest
from scipy.stats import t

from icrm_lib.report import load_cells
from icrm_lib.report.design import ALIKE, PLANNED, design_table, planned_margin, power_of_same


@pytest.mark.parametrize(("seeds", "margin"), [(16, 0.04), (8, 0.06), (30, 0.02)])
def test_power_is_the_share_of_equal_variants_that_are_found_equal(seeds, margin):
    draws = np.random.default_rng(0).normal(scale=0.045, size=(20_000, seeds))
    half = t.ppf(0.975, seeds - 1) * 0.045 / np.sqrt(seeds)  # the spread taken as known
    found = (np.abs(draws.mean(1)) + half < margin).mean()
    assert power_of_same(0.045, seeds, margin) == pytest.approx(found, abs=0.01)


def test_a_margin_below_the_intervals_half_width_decides_nothing():
    assert power_of_same(1.0, 4, 1.0) == 0.0 and power_of_same(1e-9, 2, 1.0) == 1.0


def test_the_spread_is_that_of_the_noisiest_pair(tmp_path):
    table = design_table(load_cells("lab"), ALIKE["evidence"], PLANNED["evidence"], 16)
    one = design_table(load_cells("lab"), ALIKE["evidence"][:1], PLANNED["evidence"], 16)
    assert (table["sd"] >= one["sd"]).all() and (table["sd"] > 0).all()
    assert table.loc["accuracy", "margin"] == planned_margin("accuracy") == 0.01
    assert planned_margin("token agreement, closing") == planned_margin("token agreement") == 0.04
    assert planned_margin("early 50%, loss, closing") == planned_margin("best of 64") == 0.2
