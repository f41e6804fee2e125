"""The grid: what its cells are, that a finished one is never run again, and that what they measure is the truth."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from icrm_lib import records, runtime
from icrm_lib.lab import grid as experiments
from icrm_lib.lab.grid import (
    COMPOSED,
    KNOBS,
    MAIN,
    ROLLOUTS,
    TRUTH,
    WEIGHTS,
    Cell,
    cell_config,
    is_finished,
    run_grid,
    settings_of,
    studies,
    training_rows,
    training_workspace,
    tune,
    tuned_as,
    tuning_cells,
)
from icrm_lib.lab.picks import Pool
from icrm_lib.lab.policies import KINDS
from icrm_lib.lab.test_sets import SHIFTS, VALIDATION, measure
from icrm_lib.lab.test_sets import test_set as shifted_pairs
from icrm_lib.methods import METHODS
from icrm_lib.profiles import (
    BaseModelSettings,
    DataSettings,
    GeneratorSettings,
    LanguageSettings,
    Profile,
    RewardModelSettings,
)
from icrm_lib.testbed import Language
from icrm_lib.tokenization import prepare_tokenizer, tokenize_conversations

LORA = {"lora_rank": 2, "lora_alpha": 4, "batch_size": 12, "epochs": 1.0}
MICRO = Profile(
    name="micro_grid",
    language=LanguageSettings(held_out_verbs=0.25),
    data=DataSettings(train_pairs=24, validation_pairs=30, test_pairs=40, max_length=256),
    base_model=BaseModelSettings(hidden_size=16, layers=1, heads=2, steps=3, batch_size=8),
    generator=GeneratorSettings(**LORA),
    reward_model=RewardModelSettings(**LORA, sft_weight=0.01, mlp_size=8),
)
EVERY = [cell for cells in studies().values() for cell in cells]


@pytest.fixture(scope="module", autouse=True)
def own_root(tmp_path_factory):
    """Artefacts and records of this file lie in a folder of their own."""
    root, patch = tmp_path_factory.mktemp("root"), pytest.MonkeyPatch()
    patch.setattr(runtime, "project_root", lambda: root)
    yield root
    patch.undo()


def settings(cell):
    return settings_of(MICRO, cell, {})


# The grid as a list


def test_every_cell_has_a_name_of_its_own_and_settings_that_exist():
    unique = set(EVERY)
    assert len({cell.name for cell in unique}) == len(unique)
    for cell in unique:
        assert COMPOSED.get(cell.method, cell.method) in METHODS
        settings(cell)


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
    assert set(trials) == {*KNOBS, "bt-double"}
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
    assert settings(Cell("bt", 0, pairs=pairs)).epochs == epochs


# What cells train on


def test_training_and_test_prompts_are_disjoint_and_test_sets_differ_as_named():
    train = set(training_workspace(MICRO, Cell("", 0)).pairs["train"]["prompt_id"])
    assert train
    sets = {name: shifted_pairs(MICRO, name) for name in SHIFTS}
    own = training_workspace(MICRO, Cell("", 0)).tokenized["train"]
    heads = {tuple(ids[:start]) for ids, start in zip(own["chosen_ids"], own["prompt_length"], strict=True)}
    for data in sets.values():
        assert heads.isdisjoint({tuple(ids[:start]) for ids, start in zip(data.rows, data.starts, strict=True)})
    length = {name: np.array([len(row) for row in data.rows]) for name, data in sets.items()}
    assert length["longer"].min() > np.median(length["in_distribution"])
    chosen, rejected = np.split(length["length_reversed"], 2)
    assert (chosen < rejected).all()
    disagree = {name: (data.gold[:, 0] < data.gold[:, 1]).mean() for name, data in sets.items()}
    assert disagree["noisier"] > disagree["in_distribution"]
    verbs = [{t for row in sets[name].rows for t in row} for name in ("unseen_verbs", "in_distribution")]
    assert len(verbs[0] - verbs[1]) > 10


def test_methods_of_one_seed_train_on_the_same_pairs_and_another_seed_on_others():
    ids = [
        training_rows(MICRO, Cell(method, seed), settings(Cell(method, seed)))["chosen_ids"][:]
        for method, seed in (("bt", 0), ("icrm", 0), ("bt", 1))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_confounded_pairs_have_the_longer_response_chosen_more_often():
    def longer(data):
        rows = training_rows(MICRO, Cell("bt", 0, data=data), settings(Cell("bt", 0)))
        return np.mean([len(c) > len(r) for c, r in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)])

    assert longer("confounded") > longer("plain") + 0.1


def test_perceived_margins_are_positive_and_follow_the_gold_difference():
    cell = Cell("bt_margin", 0)
    rows = training_rows(MICRO, cell, settings(cell))
    workspace = training_workspace(MICRO, Cell("", 0))
    sides = workspace.conversations("train")
    gold = np.subtract(*[[workspace.language.gold_score(c) for c in sides[s]] for s in ("chosen", "rejected")])
    margin = np.array(rows["margin"])
    assert (margin > 0).all() and np.corrcoef(margin, gold)[0, 1] > 0.5


@pytest.mark.parametrize("method", ["prm", "prm_noisy"])
def test_clause_labels_stand_at_the_ends_of_clauses_with_the_exact_value_or_its_rollouts(method):
    cell = Cell(method, 0)
    rows = training_rows(MICRO, cell, settings(cell))
    language = training_workspace(MICRO, Cell("", 0)).language
    for row in rows.select(range(8)):
        ids, start = row["chosen_ids"], row["prompt_length"]
        labels = np.array(row["chosen_step_values"], dtype=float)
        labelled = np.flatnonzero(~np.isnan(labels))
        clauses = int(language.quality_tokens(ids).sum())
        assert len(labels) == len(ids) - start and len(labelled) == clauses + 1
        following = language.tokenizer.convert_ids_to_tokens([[*ids, -1][start + t + 1] for t in labelled[:-1]])
        assert set(following) <= {".", ",", "and", "then"} and labelled[-1] == len(labels) - 1
        exact = language.prefix_values(ids)[start:]
        if method == "prm":
            np.testing.assert_allclose(labels[labelled], exact[labelled], atol=1e-6)
        else:
            np.testing.assert_allclose(labels[labelled] * ROLLOUTS % 1, 0, atol=1e-9)
        assert row["chosen_label"] == labels[-1] == exact[-1]


@pytest.mark.parametrize(
    "generator", ["exact", "temperature 0.5", "small", "under-trained", "another language", "unigram"]
)
def test_every_generator_gives_weights_of_its_own(generator):
    fitted, other = (
        training_rows(MICRO, cell, settings(cell))["chosen_logprobs"][:]
        for cell in (Cell("icrm", 0), Cell("icrm", 0, generator=generator))
    )
    assert [len(a) for a in fitted] == [len(b) for b in other]
    assert np.abs(np.concatenate(fitted) - np.concatenate(other)).mean() > 1e-3
    assert (np.concatenate(other) <= 1e-6).all()


# What cells measure


def test_the_truth_measures_as_the_truth(own_root):
    paths = run_grid(MICRO, [Cell(name, 0) for name in TRUTH], tuned={}, workers=0)
    scores, values = (records.read_json(paths[Cell(name, 0)])["metrics"] for name in ("true_scores", "true_values"))
    for counts in scores["accuracy"].values():
        assert counts["gold_right"] == counts["gold_count"]  # the gold score ranks every pair rightly
    assert sum(scores["accuracy"]["noisier"]["right"]) < sum(scores["accuracy"]["noisier"]["count"])
    assert values["tokens"]["agreement"] == {"overall": 1.0, "within": 1.0}
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
    constant = measure(MICRO, lambda rows, starts: [np.zeros(len(r) - s) for r, s in zip(rows, starts, strict=True)])
    counts = constant["accuracy"]["in_distribution"]
    assert sum(counts["count"]) == len(data.prompts) == len(data.rows) // 2
    assert sum(counts["right"]) == sum(counts["count"]) / 2 and sum(counts["gold_right"]) == 0
    assert sum(counts["gold_count"]) == (data.gold[:, 0] != data.gold[:, 1]).sum()


@pytest.mark.parametrize("method", ["icrm", "ensemble_mean", "implicit", "prm_noisy_icrm", "frozen_mlp", "grm_dpo"])
def test_a_cell_of_every_kind_is_trained_measured_and_recorded(method):
    cell = Cell(method, 3)
    path = run_grid(MICRO, [cell], tuned={}, workers=0)[cell]
    record = records.read_json(path)
    assert record["config"] == cell_config(MICRO, cell, settings(cell)) and record["environment"]["versions"]
    assert set(record["metrics"]["accuracy"]) == set(SHIFTS) and record["metrics"]["seconds"]["train"] > 0


def test_the_worst_case_of_an_ensemble_is_the_least_reward_of_its_members(tmp_path):
    data = shifted_pairs(MICRO, "noisier")
    rows, starts = data.rows[:4], data.starts[:4]
    mean, worst = (
        experiments.train(MICRO, Cell(m, 0), settings(Cell(m, 0)), tmp_path / m)[0](rows, starts)
        for m in ("ensemble_mean", "ensemble_worst")
    )
    assert all((w <= m + 1e-6).all() and (w < m).any() for w, m in zip(worst, mean, strict=True))


def test_tuning_takes_the_trial_with_the_best_validation_accuracy_and_tunes_only_what_is_asked(monkeypatch, tmp_path):
    def fake(profile, cell, settings, path, purpose):
        right = {0.003: 20, 0.006: 24}.get(settings.learning_rate, 0) - (settings.consistency_weight == 0.6)
        metrics = {"accuracy": {VALIDATION: {"right": [right], "count": [30]}}}
        records.write_json(path, {"config": cell_config(profile, cell, settings), "metrics": metrics})

    monkeypatch.setattr(experiments, "run_cell", fake)
    tuned = tune(MICRO, [Cell("icrm_entropy", 0)], folder=tmp_path, workers=0)
    assert tuned == {"icrm": {"learning_rate": 0.006, "consistency_weight": 0.3}}
    assert len(list(tmp_path.glob("*.json"))) == 8


# Resuming


def test_a_finished_cell_is_not_run_again_and_a_changed_or_damaged_one_is(monkeypatch):
    cells = [Cell("bt", 7), Cell("frozen_mlp", 7)]
    paths = run_grid(MICRO, cells, tuned={}, workers=0)
    ran = []
    real = experiments.run_cell
    monkeypatch.setattr(experiments, "run_cell", lambda p, c, s, *rest: ran.append(c.name) or real(p, c, s, *rest))
    before = paths[cells[0]].read_bytes()
    assert run_grid(MICRO, cells, tuned={}, workers=0) == paths and ran == []
    paths[cells[0]].write_text('{"config": ')
    run_grid(MICRO, cells, tuned={"frozen_mlp": {"learning_rate": 0.01}}, workers=0)
    assert ran == [cell.name for cell in cells]
    again = records.read_json(paths[cells[0]])["metrics"]
    again.pop("seconds")
    first = json.loads(before)["metrics"]
    first.pop("seconds")
    assert again == first  # made again, it is the same
    assert not is_finished(paths[cells[0]].with_name("nothing.json"), {})


def test_a_setting_that_came_later_does_not_undo_a_record_while_it_has_its_default(tmp_path):
    cell = Cell("bt", 0)
    config = cell_config(MICRO, cell, settings_of(MICRO, cell, {}))
    old = json.loads(json.dumps(config))
    del old["settings"]["padding_free"], old["profile"]["samples"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"config": old}))
    assert is_finished(path, config)
    changed = json.loads(json.dumps(config))
    changed["settings"]["padding_free"] = True
    assert not is_finished(path, changed)
    del old["settings"]["lora_rank"]  # MICRO's is not the default
    path.write_text(json.dumps({"config": old}))
    assert not is_finished(path, config)


def test_one_failing_cell_does_not_stop_the_others():
    cells = [Cell("bt", 8, changes=(("consistency_weight", 2.0),)), Cell("bt", 8)]
    with pytest.raises(ValueError, match="consistency_weight must be in"):
        run_grid(MICRO, cells, tuned={}, workers=0)
    assert (experiments.cells_folder(MICRO) / "bt-seed_8.json").exists()


DRIVER = """
from test_experiments import MICRO
from icrm_lib.lab.grid import Cell, run_grid
if __name__ == "__main__":
    run_grid(MICRO, [Cell("bt", seed) for seed in range(4)], tuned={}, workers=2)
"""


def test_a_killed_grid_goes_on_where_it_was_and_workers_change_nothing(tmp_path):
    source = Path(experiments.__file__).parents[1]
    for name in ("icrm_lib", "profiles"):
        shutil.copytree(source / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "pyproject.toml", tmp_path)
    shutil.copy(__file__, tmp_path / "test_experiments.py")
    (tmp_path / "driver.py").write_text(DRIVER)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "ICRM_UNATTENDED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "driver.py")]
    folder = tmp_path / "results" / "micro_grid" / "experiments"
    options = {"cwd": tmp_path, "env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, start_new_session=True, **options)
    deadline = time.monotonic() + 240
    while not list(folder.glob("bt*.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("bt*.json")}
    subprocess.run(command, check=True, timeout=240, **options)
    assert sorted(path.name for path in folder.glob("*.json")) == [f"bt-seed_{seed}.json" for seed in range(4)]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    cells = [Cell("bt", seed) for seed in range(4)]
    here = run_grid(MICRO, cells, tuned={}, workers=0)
    for cell in cells:
        there = records.read_json(folder / f"{cell.name}.json")["metrics"]
        ours = records.read_json(here[cell])["metrics"]
        assert there["accuracy"] == ours["accuracy"] and there["tokens"] == ours["tokens"]


# Other purposes


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
    monkeypatch.setattr(experiments, "pool", lambda profile: found)
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

    monkeypatch.setattr(experiments, "measure_policies", fake)
    monkeypatch.setattr(experiments, "training_samples", lambda workspace: None)
    cells = [Cell("true_scores", 3), Cell("grm_sft", 4)]
    paths = run_grid(MICRO, cells, tuned={}, purpose="policy", folder=tmp_path, workers=0)
    rewards, kinds = seen[3]
    assert [row[-1] for row in rewards] == small_pool.gold[0, :3].tolist() and kinds == KINDS
    assert [len(row) for row in rewards] == small_pool.lengths[0, :3].tolist()
    assert seen[4][1] == ("dpo",) and records.read_json(paths[cells[1]])["config"]["kinds"] == ["dpo"]
