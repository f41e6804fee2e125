"""Differences, intervals, Holm's correction and verdicts, on records made by hand."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from icrm_lib import records
from icrm_lib.lab.cells import studies
from icrm_lib.report import compare, contrasts_table, estimate, holm, load_cells, summary_table
from icrm_lib.report.cells import MARGINS, MEASURES
from icrm_lib.report.evidence import CONTRASTS, Contrast

PROMPTS = 12


def record(right, count=None, seconds=1.0):
    count = [10] * PROMPTS if count is None else count
    return {
        "metrics": {
            "accuracy": {"in_distribution": {"right": list(right), "count": list(count)}},
            "agreement_by_prompt": {"sum": list(right), "count": list(count)},
            "seconds": {"train": seconds},
        }
    }


def runs(probability, seeds, rng):
    return {seed: record(rng.binomial(10, probability, PROMPTS)) for seed in range(seeds)}


def test_the_estimate_is_the_pooled_mean_and_its_interval_holds_it():
    cells = {0: record([5] * PROMPTS), 1: record([7] * PROMPTS)}
    value, low, high = estimate(cells, "accuracy on labels")
    assert value == pytest.approx(0.6) and low < 0.6 < high


def test_an_undivided_measure_is_the_mean_over_seeds():
    cells = {seed: record([5] * PROMPTS, seconds=seconds) for seed, seconds in enumerate((1.0, 2.0, 6.0))}
    assert estimate(cells, "train seconds").value == pytest.approx(3.0)


def test_a_comparison_uses_the_common_seeds_and_is_antisymmetric():
    rng = np.random.default_rng(0)
    first, second = runs(0.8, 6, rng), runs(0.6, 5, rng)
    there, back = compare(first, second, "accuracy on labels"), compare(second, first, "accuracy on labels")
    assert there.seeds == 5
    assert there.difference.value == pytest.approx(-back.difference.value)
    assert (there.difference.low, there.difference.high) == pytest.approx((-back.difference.high, -back.difference.low))
    want = np.mean([np.sum(first[s]["metrics"]["accuracy"]["in_distribution"]["right"]) for s in range(5)])
    assert there.first == pytest.approx(want / (10 * PROMPTS))


def test_pairing_removes_what_seeds_and_prompts_share():
    rng = np.random.default_rng(1)
    base = rng.integers(2, 8, size=(8, PROMPTS))
    first = {s: record(base[s] + 1) for s in range(8)}
    second = {s: record(base[s]) for s in range(8)}
    result = compare(first, second, "accuracy on labels")
    assert result.difference.low == pytest.approx(0.1) and result.difference.high == pytest.approx(0.1)
    assert result.p < 0.001
    width = np.subtract(*estimate(first, "accuracy on labels")[:0:-1])
    assert width > 0.05  # unpaired, the same numbers are that uncertain


def test_no_difference_gives_a_p_value_of_one():
    cells = {s: record([5] * PROMPTS) for s in range(5)}
    result = compare(cells, cells, "accuracy on labels")
    assert result.difference.value == 0 and result.p == 1.0


def simulated(rng, seeds, shift=0.0):
    """Two equal variants (up to `shift`): prompts differ, seeds differ, and so does every cell."""
    quality = rng.normal(0.7, 0.08, size=PROMPTS).clip(0.05, 0.95)
    sides = []
    for extra in (0.0, shift):
        of_seed, of_prompt = rng.normal(0, 0.03, size=(seeds, 1)), rng.normal(0, 0.02, size=PROMPTS)
        right = rng.binomial(10, (quality + of_seed + of_prompt + extra).clip(0.01, 0.99))
        sides.append({s: record(right[s], seconds=float(right[s].sum())) for s in range(seeds)})
    return sides


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("measure", ["accuracy on labels", "train seconds"])
def test_equal_variants_are_told_apart_about_as_often_as_stated(measure, seeds, monkeypatch):
    monkeypatch.setattr("icrm_lib.measures.statistics.RESAMPLES", 400)
    rng = np.random.default_rng(seeds)
    results = [compare(*simulated(rng, seeds), measure) for _ in range(200)]
    found = np.mean([r.p < 0.05 for r in results])
    # 0.05 with a standard error of 0.015; prompts count twice over for an undivided measure, which sees seeds alone
    assert 0.005 <= found <= 0.11
    assert all((r.p < 0.05) == (r.difference.low > 0 or r.difference.high < 0) for r in results)


def test_a_difference_that_is_there_is_found():
    rng = np.random.default_rng(2)
    found = [compare(*simulated(rng, 10, shift=0.1), "accuracy on labels").p < 0.05 for _ in range(20)]
    assert np.mean(found) >= 0.8


def test_an_undivided_measure_is_the_paired_t_test():
    rng = np.random.default_rng(5)
    first, second = simulated(rng, 6)
    differences = [first[s]["metrics"]["seconds"]["train"] - second[s]["metrics"]["seconds"]["train"] for s in range(6)]
    assert compare(first, second, "train seconds").p == pytest.approx(ttest_1samp(differences, 0).pvalue, rel=0.1)


def test_one_common_seed_is_no_comparison():
    with pytest.raises(ValueError, match="1 common seeds"):
        compare({0: record([5] * PROMPTS)}, {0: record([6] * PROMPTS), 1: record([6] * PROMPTS)}, "accuracy on labels")
    with pytest.raises(ValueError, match="unknown measure 'acuracy'"):
        estimate({0: record([5] * PROMPTS)}, "acuracy")


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 -> .04 .06 .06 .06 (never smaller than the one before)
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])
    assert holm([0.3]) == [0.3]


def test_verdicts_follow_the_adjusted_p_value_and_the_interval():
    rng = np.random.default_rng(3)
    base = rng.integers(3, 7, size=(6, PROMPTS))
    noisy = base + rng.integers(-2, 3, size=(6, PROMPTS)) + rng.integers(-2, 3, size=(6, 1))
    cells = {
        "a": {s: record(base[s]) for s in range(6)},
        "better": {s: record(base[s] + 2) for s in range(6)},
        "same": {s: record(base[s]) for s in range(6)},
        "noisy": {s: record(noisy[s].clip(0, 10)) for s in range(6)},
    }
    claims = [Contrast(1, "better", "a", ("accuracy on labels",)), Contrast(2, "a", "better", ("accuracy on labels",))]
    claims += [Contrast(3, "same", "a", ("accuracy on labels",)), Contrast(4, "noisy", "a", ("accuracy on labels",))]
    table = contrasts_table(cells, [*claims, Contrast(5, "missing", "a", ("accuracy on labels",))])
    assert table["verdict"].tolist() == ["higher", "lower", "same", "undecided"]
    assert table["p_holm"].tolist() == table["p"].tolist()  # one test an objection
    assert (table["difference"] == table["mean first"] - table["mean second"]).all()


def test_holm_counts_the_tests_whose_cells_are_not_there_yet():
    rng = np.random.default_rng(3)
    base = rng.integers(3, 6, size=(6, PROMPTS))
    cells = {"a": {s: record(base[s]) for s in range(6)}}
    cells["b"] = {s: record((base[s] + rng.integers(0, 4, PROMPTS)).clip(0, 10)) for s in range(6)}
    measure = ("accuracy on labels",)
    contrasts = [Contrast(1, "b", "a", measure), *(Contrast(1, f"missing{i}", "a", measure) for i in range(4))]
    table = contrasts_table(cells, contrasts)
    assert len(table) == 1 and table["p_holm"][0] == pytest.approx(5 * table["p"][0])
    assert contrasts_table({}, contrasts).empty


def made(rate):
    config = {"settings": {"learning_rate": rate}, "profile": {"name": "lab"}}
    return record([1] * PROMPTS) | {"config": config, "base_model": "x"}


def test_cells_of_other_settings_are_not_mixed(tmp_path):
    for seed, rate in enumerate((1.0, 1.0, 2.0)):
        records.write_json(tmp_path / f"icrm-seed_{seed}.json", made(rate))
    with pytest.raises(ValueError, match=r"cells of icrm were made with 2 different settings"):
        load_cells("lab", tmp_path)


def test_cells_are_read_by_variant_and_seed_and_tuning_is_left_out(tmp_path):
    for name in ("icrm-seed_0", "icrm-seed_1", "icrm-under-trained-seed_3", "bt-learning_rate_0.003-seed_100"):
        records.write_json(tmp_path / f"{name}.json", made(1.0))
    (tmp_path / "notes.json").write_text("{}")
    cells = load_cells("lab", tmp_path)
    assert {name: sorted(seeds) for name, seeds in cells.items()} == {"icrm": [0, 1], "icrm-under-trained": [3]}
    with pytest.raises(FileNotFoundError, match="make evidence PROFILE=lab"):
        load_cells("lab", tmp_path / "nothing")


def test_the_summary_has_an_estimate_for_every_measure_and_a_point_for_a_single_run():
    rng = np.random.default_rng(4)
    cells = {"icrm": runs(0.8, 3, rng), "true_scores": runs(0.9, 1, rng)}
    table = summary_table(cells, ["icrm", "true_scores"], ["accuracy on labels", "train seconds"])
    assert table["seeds"].tolist() == [3, 1]
    value, low, high = estimate(cells["icrm"], "accuracy on labels")
    assert table.loc["icrm", "accuracy on labels"] == f"{value:.3f} [{low:.3f}, {high:.3f}]"
    assert table.loc["true_scores", "train seconds"] == "1.000"
    with pytest.raises(ValueError, match="no cells of 'icmr'; did you mean 'icrm'"):
        summary_table(cells, ["icmr"], ["accuracy on labels"])


def test_a_value_that_is_not_finite_is_named_and_never_a_result():
    cells = {s: record([5] * PROMPTS, seconds=None if s == 2 else 1.0) for s in range(4)}
    with pytest.raises(ValueError, match=r"train seconds is not finite in the cells of seeds \[2\]"):
        compare(cells, {s: record([5] * PROMPTS) for s in range(4)}, "train seconds")


def test_every_contrast_is_about_cells_of_the_grid_and_known_measures():
    variants = {cell.name.rpartition("-seed_")[0] for cells in studies().values() for cell in cells}
    assert set(MARGINS) == set(MEASURES)
    for contrast in CONTRASTS:
        assert {contrast.first, contrast.second} <= variants and set(contrast.measures) <= set(MEASURES)
    # 11, the presentation, is no measurement
    assert {contrast.objection for contrast in CONTRASTS} == {*range(1, 11), 12}


def test_margins_are_points_for_gold_scores_alone():
    assert MARGINS["early"] == MARGINS["middle"] == MARGINS["early 50%, share"] == 0.03
    assert MARGINS["early 50%, loss"] == MARGINS["best of 64"] == MARGINS["dpo, greedy"] == 0.1
    assert MARGINS["longer"] == 0.01
