"""One cell of the evidence: its inputs, the training, the measurement, the record."""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from datasets import Dataset

from icrm_lib import records
from icrm_lib.lab.cells import ENSEMBLE_SIZE, TRUTH, WEIGHTS, Cell
from icrm_lib.lab.inputs import base_model, compare_weights, training_rows, training_workspace
from icrm_lib.lab.purposes import PURPOSES
from icrm_lib.lab.record import cell_config, plain
from icrm_lib.lab.test_sets import true_rewards
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import model_fingerprint
from icrm_lib.measures.tokens import TokenScorer
from icrm_lib.policy import implicit_rewards, train_dpo
from icrm_lib.profiles import Profile, RewardModelSettings
from icrm_lib.reward_model import RewardModel
from icrm_lib.training import train_reward_model


def run_cell(
    profile: Profile, cell: Cell, settings: RewardModelSettings, path: Path, purpose: str = "evidence"
) -> Path:
    """Train and measure one cell, and write its record."""
    if cell.method == WEIGHTS:
        metrics = {"weights": compare_weights(profile, cell)}
    else:
        with tempfile.TemporaryDirectory() as folder:
            trained = train(profile, cell, settings, Path(folder))
            begin = time.perf_counter()
            metrics = PURPOSES[purpose].measure(profile, cell, trained.rewards, Path(folder))
        metrics["seconds"] = {"train": round(trained.seconds, 2), "measure": round(time.perf_counter() - begin, 2)}
    record = {
        "config": cell_config(profile, cell, settings, purpose),
        # Not part of what makes a cell finished: the same settings give another base model on another machine.
        "base_model": model_fingerprint(base_model(profile, cell.base)),
        "environment": records.environment(),
        "metrics": plain(metrics),
    }
    return records.write_json(path, record, compact=True)


class Trained(NamedTuple):
    """What scores tokens, and the seconds of training alone."""

    rewards: TokenScorer
    seconds: float


def train(profile: Profile, cell: Cell, settings: RewardModelSettings, folder: Path) -> Trained:
    """Train a cell's model or models; logs go to `folder`."""
    if cell.method in TRUTH:
        return Trained(partial(true_rewards, profile, cell.method), 0.0)
    workspace = training_workspace(profile, cell)
    if cell.method == "implicit":
        return _train_policy(workspace, settings, folder, cell.seed)
    rows = training_rows(profile, cell, settings)
    members = ENSEMBLE_SIZE if cell.method.startswith("ensemble") else 1
    models, seconds = [], 0.0
    for member in range(members):
        model, took = _train_member(workspace, rows, settings, folder / str(member), cell.seed + 1000 * member)
        models.append(model)
        seconds += took
    return Trained(partial(_ensemble_rewards, models, np.min if cell.method == "ensemble_worst" else np.mean), seconds)


def _train_policy(workspace: Workspace, settings: RewardModelSettings, folder: Path, seed: int) -> Trained:
    begin, beta = time.perf_counter(), settings.text_beta
    options = {"folder": folder, "seed": seed, "beta": beta}
    trainer = train_dpo(workspace.base_model, workspace.tokenizer, workspace.pairs["train"], settings, **options)
    seconds = time.perf_counter() - begin
    policy, reference = trainer.model.merge_and_unload(), load_causal_lm(workspace.base_model)
    scorer = partial(implicit_rewards, policy, reference, beta=beta, pad_token_id=workspace.tokenizer.pad_token_id)
    return Trained(scorer, seconds)


def _train_member(
    workspace: Workspace, rows: Dataset, settings: RewardModelSettings, folder: Path, seed: int
) -> tuple[RewardModel, float]:
    begin = time.perf_counter()
    options = {"folder": folder, "seed": seed}
    trainer = train_reward_model(workspace.base_model, workspace.tokenizer, rows, settings, **options)
    return RewardModel(trainer.model, workspace.tokenizer), time.perf_counter() - begin


def _ensemble_rewards(
    models: Sequence[RewardModel], together: Callable, rows: Sequence[list[int]], starts: Sequence[int]
) -> list[np.ndarray]:
    each = [model.token_scores(rows, starts, batch_size=64) for model in models]
    return each[0] if len(each) == 1 else [together(values, axis=0) for values in zip(*each, strict=True)]
