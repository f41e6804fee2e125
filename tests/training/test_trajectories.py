"""What training does, step by step: ten steps of every method are compared with those that are committed.

So that no change of the code changes training unseen. `trajectories/<method>.json` holds what the trainer logs at each
step: the loss and its parts, S, accuracy, margins, norm of the gradient, learning rate. Where training is meant to
change, write them anew and say why in CHANGELOG.md:

    ICRM_WRITE_TRAJECTORIES=1 python -m pytest tests/training/test_trajectories.py
"""

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from icrm_lib.methods import METHODS, method_settings
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.training import ICRMConfig
from icrm_lib.training import fit as training_module

FOLDER = Path(__file__).parent / "trajectories"
STEPS, BATCH = 10, 4
SETTINGS = RewardModelSettings(
    lora_rank=2,
    lora_alpha=4,
    epochs=1,
    batch_size=BATCH,
    learning_rate=1e-2,
    mlp_size=8,
    consistency_weight=0.3,
    sft_weight=0.01,
)
VOLATILE = {"epoch", "step", "num_tokens"}
TOLERANCE = 1e-5  # absolute and relative


class EveryStep(ICRMConfig):
    """The trainer's configuration, logging each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **(kwargs | {"logging_steps": 1}))


@pytest.fixture(scope="module")
def rows(pairs_with_logprobs):
    """Forty pairs with every column that a method may read, `margin` apart; drawn once from one seed."""
    rng = np.random.default_rng(0)

    def columns(row, index):
        following = np.random.default_rng([1, index])
        new = {"chosen_label": 1.0, "rejected_label": float(index % 4 == 0)}
        for side in ("chosen", "rejected"):
            length = len(row[f"{side}_ids"]) - row["prompt_length"]
            new[f"{side}_sibling_ids"] = following.integers(5, 100, (length, 4))
            new[f"{side}_sibling_logprobs"] = -following.exponential(size=(length, 4))
            new[f"{side}_reference"] = -rng.uniform(20, 60)
            new[f"{side}_negentropies"], new[f"{side}_logmargins"] = -rng.exponential(size=(2, length))
            new[f"{side}_step_values"] = np.where(rng.random(length) < 0.6, math.nan, rng.random(length))
        return new

    pairs = pairs_with_logprobs.select(range(STEPS * BATCH))
    return pairs.map(columns, with_indices=True, load_from_cache_file=False)


def trajectory(base_model, tokenizer, rows, folder, method):
    """Train ten steps; what was logged at each of them."""
    settings = method_settings(SETTINGS, method)
    if settings.margin:
        rows = rows.add_column("margin", np.linspace(0.5, 4, len(rows)))
    settings = dataclasses.replace(settings, warmup=0.2)
    if settings.head == "mlp":  # units that are off have no gradient but rounding, of which Adam makes whole steps
        settings = dataclasses.replace(settings, padding_free=False, prefix_sharing=False)
    training_module.train_reward_model(base_model, tokenizer, rows, settings, folder=folder, seed=0)
    logged = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [{k: v for k, v in entry.items() if k not in VOLATILE} for entry in logged if "loss" in entry]
    assert len(steps) == STEPS
    return {name: [float(f"{step[name]:.9g}") for step in steps] for name in sorted(steps[0])}


@pytest.mark.parametrize("method", METHODS)
def test_ten_steps_are_those_that_are_committed(base_model, tokenizer, rows, tmp_path, monkeypatch, method):
    monkeypatch.setattr(training_module, "ICRMConfig", EveryStep)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in one order
    try:
        found = trajectory(base_model, tokenizer, rows, tmp_path, method)
    finally:
        torch.set_num_threads(threads)
    file = FOLDER / f"{method}.json"
    if os.environ.get("ICRM_WRITE_TRAJECTORIES"):
        lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(values)}" for name, values in found.items())
        file.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    kept = json.loads(file.read_text(encoding="utf-8"))
    # Since batches are laid out alike for all methods, those without a term of ours log these, too.
    assert found.keys() - {"bt_loss", "token_reward_std"} <= kept.keys() <= found.keys()
    for name, values in kept.items():
        assert found[name] == pytest.approx(values, rel=TOLERANCE, abs=TOLERANCE), name


def test_every_method_has_its_trajectory_and_nothing_else():
    assert {path.stem for path in FOLDER.iterdir()} == set(METHODS)
