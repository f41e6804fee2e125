"""One cell: trained, measured against the truth, recorded; and what it measures for each purpose."""

import numpy as np
import pytest
from tiny import micro_grid

from icrm_lib import records
from icrm_lib.lab import picks, policies
from icrm_lib.lab.cell import cell_config, is_finished, train
from icrm_lib.lab.cells import TRUTH, WEIGHTS, Cell
from icrm_lib.lab.grid import run_grid
from icrm_lib.lab.held_out import SHIFTS, measure_tokens
from icrm_lib.lab.held_out import test_set as shifted_pairs
from icrm_lib.lab.inputs import settings_of
from icrm_lib.lab.picks import Pool
from icrm_lib.lab.policies import KINDS
from icrm_lib.testbed import Language
from icrm_lib.tokenization import prepare_tokenizer, tokenize_conversations

MICRO = micro_grid()
pytestmark = pytest.mark.usefixtures("own_root")


def settings(cell):
    return settings_of(MICRO, cell, {})


def test_the_truth_measures_as_the_truth():
    paths = run_grid(MICRO, [Cell(name, 0) for name in TRUTH], tuned={}, workers=0)
    scores, values = (records.read_json(paths[Cell(name, 0)])["metrics"] for name in ("true_scores", "true_values"))
    for counts in scores["accuracy"].values():
        assert counts["gold_right"] == counts["gold_count"]  # the gold score ranks every pair rightly
    assert sum(scores["accuracy"]["noisier"]["right"]) < sum(scores["accuracy"]["noisier"]["count"])
    assert values["tokens"]["agreement"] == {"overall": 1.0, "within": 1.0}
    assert scores["tokens"]["score_agreement"] == {"overall": 1.0, "within": 1.0}
    assert values["tokens"]["changes"]["all"] == values["tokens"]["changes"]["unlikely"] == 1.0
    assert "closing" not in values  # the truth of a prefix has no second reading
    assert values["longer_tokens"]["within"] == 1.0
    assert values["tokens"]["calibration"]["skill"] > 0.99  # given as logits, the truth is calibrated
    assert values["tokens"]["smoothness"]["within"] < 0


def test_weights_are_compared_with_the_exact_probabilities():
    cells = [Cell(WEIGHTS, 0, generator=name) for name in ("exact", "fitted", "unigram")]
    paths = run_grid(MICRO, cells, tuned={}, workers=0)
    exact, fitted, unigram = (records.read_json(paths[cell])["metrics"]["weights"] for cell in cells)
    assert exact["spearman"] == exact["pearson"] == 1.0 and exact["mean_absolute_difference"] == 0.0
    assert unigram["spearman"] < 0.9 and fitted["spearman"] < 1.0


def test_counts_by_prompt_add_up_and_a_tie_is_half_right():
    data = shifted_pairs(MICRO, "in_distribution")

    def zeros(rows, starts):
        return [np.zeros(len(r) - s) for r, s in zip(rows, starts, strict=True)]

    constant = measure_tokens(MICRO, {"place": zeros})
    counts = constant["accuracy"]["in_distribution"]
    assert sum(counts["count"]) == len(data.prompts) == len(data.rows) // 2
    assert sum(counts["right"]) == sum(counts["count"]) / 2
    assert sum(counts["gold_right"]) == sum(counts["gold_count"]) / 2
    assert sum(counts["gold_count"]) == (data.gold[:, 0] != data.gold[:, 1]).sum()


@pytest.mark.parametrize("method", ["icrm", "ensemble_mean", "implicit", "prm_noisy_icrm", "frozen_mlp", "grm_dpo"])
def test_a_cell_of_every_kind_is_trained_measured_and_recorded(method):
    cell = Cell(method, 3)
    path = run_grid(MICRO, [cell], tuned={}, workers=0)[cell]
    record = records.read_json(path)
    assert record["config"] == cell_config(MICRO, cell, settings(cell)) and record["environment"]["versions"]
    assert set(record["metrics"]["accuracy"]) == set(SHIFTS) and record["metrics"]["seconds"]["train"] > 0
    if method != "implicit":
        closing = record["metrics"]["closing"]
        assert set(closing) == {name for name in record["metrics"] if "tokens" in name or name.endswith("_by_prompt")}
        assert closing["tokens"] != record["metrics"]["tokens"]


def test_the_worst_case_of_an_ensemble_is_the_least_reward_of_its_members(tmp_path):
    data = shifted_pairs(MICRO, "noisier")
    rows, starts = data.rows[:4], data.starts[:4]
    mean, worst = (
        train(MICRO, Cell(m, 0), settings(Cell(m, 0)), tmp_path / m)[0]["place"](rows, starts)
        for m in ("ensemble_mean", "ensemble_worst")
    )
    assert all((w <= m + 1e-6).all() and (w < m).any() for w, m in zip(worst, mean, strict=True))


@pytest.fixture
def small_pool(monkeypatch):
    """Eight responses of the language to two prompts of each split, in the place of a policy's samples."""
    language, rng = Language(held_out_verbs=0.25), np.random.default_rng(0)
    prompts = [text for part in language.split_prompts()[1:] for text in part[:2]]
    talks = [
        [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        for prompt in prompts
        for text in language.sample_responses(prompt, 8, rng)
    ]
    rows = tokenize_conversations(prepare_tokenizer(language.tokenizer), talks)
    gold = np.array([language.gold_score(talk) for talk in talks]).reshape(4, 8)
    lengths = np.array([len(row.input_ids) - row.prompt_length for row in rows]).reshape(4, 8)
    validation = np.array([True, True, False, False])
    starts = [row.prompt_length for row in rows]
    found = Pool([row.input_ids for row in rows], starts, gold, lengths, validation)
    monkeypatch.setattr(picks, "pool_of", lambda profile: found)
    return found


def test_picks_are_measured_and_the_gold_score_picks_best(small_pool, tmp_path):
    cells = [Cell("bt", 0), Cell("true_scores", 0)]
    paths = run_grid(MICRO, cells, tuned={}, purpose="best_of_n", folder=tmp_path, workers=0)
    found = {cell.method: records.read_json(path) for cell, path in paths.items()}
    best = small_pool.gold[2:].max(1).tolist()
    assert found["true_scores"]["metrics"]["gold"]["8"] == best
    assert np.mean(found["bt"]["metrics"]["gold"]["8"]) <= np.mean(best)
    settings = settings_of(MICRO, cells[0], {})
    assert found["bt"]["config"] == cell_config(MICRO, cells[0], settings, "best_of_n")
    assert not is_finished(paths[cells[0]], cell_config(MICRO, cells[0], settings))
    changed = paths[cells[0]].stat().st_mtime_ns
    run_grid(MICRO, cells, tuned={}, purpose="best_of_n", folder=tmp_path, workers=0)
    assert paths[cells[0]].stat().st_mtime_ns == changed


def test_policies_are_trained_on_what_the_cells_model_says(small_pool, tmp_path, monkeypatch):
    seen = {}

    def fake(workspace, rewards, *, seed, folder, kinds):
        seen[seed] = (rewards(small_pool.rows[:3], small_pool.starts[:3]), kinds)
        return {"dpo": {"greedy": [1.0]}}

    monkeypatch.setattr(policies, "measure_policies", fake)
    monkeypatch.setattr(policies, "training_samples", lambda workspace: None)
    cells = [Cell("true_scores", 3), Cell("grm_sft", 4)]
    paths = run_grid(MICRO, cells, tuned={}, purpose="policy", folder=tmp_path, workers=0)
    rewards, kinds = seen[3]
    assert [row[-1] for row in rewards] == small_pool.gold[0, :3].tolist() and kinds == KINDS
    assert [len(row) for row in rewards] == small_pool.lengths[0, :3].tolist()
    assert seen[4][1] == ("dpo",) and records.read_json(paths[cells[1]])["config"]["kinds"] == ["dpo"]
