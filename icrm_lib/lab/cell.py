"""One cell of the evidence: its inputs, the training, the measurement, and the record that comes of it."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from peft import PeftModel

from icrm_lib import records, runtime
from icrm_lib.lab import held_out, picks, policies
from icrm_lib.lab.artefacts import code_fingerprint
from icrm_lib.lab.cells import ENSEMBLE_SIZE, ROLLOUTS, TRUTH, VERSION, WEIGHTS, Cell
from icrm_lib.lab.held_out import Readouts, true_rewards
from icrm_lib.lab.inputs import base_model, compare_weights, training_rows, training_workspace
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import model_fingerprint
from icrm_lib.policy import implicit_rewards, train_dpo
from icrm_lib.profiles import Profile, RewardModelSettings
from icrm_lib.reward_model import RewardModel
from icrm_lib.reward_model.closing import Readout
from icrm_lib.training import train_reward_model

# What the cells of a study are for, asked here alone. A purpose is a module with `constants(profile, cell)`, what of
# its code decides the numbers and so stands in a record; `prepare(profile)`, which makes what its cells share before
# several processes want it, and says where it lies; and `measure(profile, cell, readouts, folder)`, the metrics of
# a record.
PURPOSES = {"evidence": held_out, "best_of_n": picks, "policy": policies}


def compute_cell(
    profile: Profile, cell: Cell, settings: RewardModelSettings, purpose: str = "evidence"
) -> dict[str, Any]:
    """Train and measure one cell, and return its record; where it is kept, `grid` decides."""
    if cell.method == WEIGHTS:
        metrics = {"weights": compare_weights(profile, cell)}
    else:
        with tempfile.TemporaryDirectory() as folder:
            metrics = _trained(profile, cell, settings, purpose, Path(folder))
    return {
        "config": cell_config(profile, cell, settings, purpose),
        # Not part of what makes a cell finished: the same settings give another base model on another machine, and
        # most changes of the code change no number.
        "base_model": model_fingerprint(base_model(profile, cell.base)),
        "code": code(),
        "environment": records.environment(),
        "metrics": plain(metrics),
    }


def _trained(profile: Profile, cell: Cell, settings: RewardModelSettings, purpose: str, folder: Path) -> dict[str, Any]:
    """The metrics of a cell's model. A trial of tuning whose training diverges is one that gets no pair right."""
    try:
        readouts, seconds = train(profile, cell, settings, folder)
    except FloatingPointError as error:
        if not cell.is_trial:
            raise
        return held_out.nothing_right(profile) | {"diverged": str(error)}
    begin = time.perf_counter()
    metrics = PURPOSES[purpose].measure(profile, cell, readouts, folder)
    return metrics | {"seconds": {"train": round(seconds, 2), "measure": round(time.perf_counter() - begin, 2)}}


def code() -> str:
    """Return a hash of this module and of all that it imports of the kit: the code behind a record."""
    return code_fingerprint(__name__)


def train(profile: Profile, cell: Cell, settings: RewardModelSettings, folder: Path) -> tuple[Readouts, float]:
    """Train a cell's model or models; logs go to `folder`. Return what scores tokens, and the seconds of training."""
    if cell.method in TRUTH:
        return {"place": partial(true_rewards, profile, cell.method)}, 0.0
    workspace = training_workspace(profile, cell)
    if cell.method == "implicit":
        return _train_policy(workspace, settings, folder, cell.seed)
    rows = training_rows(profile, cell, settings)
    models, seconds, states = [], 0.0, workspace.lower_states(settings, rows)
    for member in range(ENSEMBLE_SIZE if cell.method.startswith("ensemble") else 1):
        begin = time.perf_counter()
        options = {"folder": folder / str(member), "seed": cell.seed + 1000 * member, "states": states}
        trainer = train_reward_model(workspace.base_model, workspace.tokenizer, rows, settings, **options)
        model = trainer.model.merge_and_unload() if isinstance(trainer.model, PeftModel) else trainer.model
        models.append(RewardModel(model, workspace.tokenizer))  # merged: scoring takes two thirds of the time
        seconds += time.perf_counter() - begin
    together = np.min if cell.method == "ensemble_worst" else np.mean
    return {readout: partial(_ensemble_rewards, models, together, readout) for readout in get_args(Readout)}, seconds


def _train_policy(
    workspace: Workspace, settings: RewardModelSettings, folder: Path, seed: int
) -> tuple[Readouts, float]:
    begin, beta = time.perf_counter(), settings.text_beta
    options = {"folder": folder, "seed": seed, "beta": beta}
    trainer = train_dpo(workspace.base_model, workspace.tokenizer, workspace.pairs["train"], settings, **options)
    seconds = time.perf_counter() - begin
    policy, reference = trainer.model.merge_and_unload(), load_causal_lm(workspace.base_model)
    scorer = partial(implicit_rewards, policy, reference, beta=beta, pad_token_id=workspace.tokenizer.pad_token_id)
    return {"place": scorer}, seconds


def _ensemble_rewards(
    models: Sequence[RewardModel],
    together: Callable,
    readout: Readout,
    rows: Sequence[list[int]],
    starts: Sequence[int],
) -> list[np.ndarray]:
    each = [model.token_scores(rows, starts, readout=readout) for model in models]
    return each[0] if len(each) == 1 else [together(values, axis=0) for values in zip(*each, strict=True)]


def cells_folder(profile: Profile, purpose: str = "evidence") -> Path:
    """Where the records of a profile's cells lie."""
    return runtime.project_root() / "results" / runtime.plain_name(profile.name) / runtime.plain_name(purpose)


def cell_config(
    profile: Profile, cell: Cell, settings: RewardModelSettings, purpose: str = "evidence"
) -> dict[str, Any]:
    """Return all that decides a cell's numbers, beside the code."""
    sections = {name: value for name, value in profile.config().items() if name != "reward_model"}
    constants = {"version": VERSION, "rollouts": ROLLOUTS, "ensemble": ENSEMBLE_SIZE}
    constants |= PURPOSES[purpose].constants(profile, cell)
    return plain({"cell": asdict(cell), "settings": asdict(settings), "profile": sections, **constants})


def plain(value: Any) -> Any:
    """Plain JSON values: tuples as lists, numbers rounded to six digits, nan as None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(f"{value:.6g}")
    return value


LAYOUT = ("padding_free", "prefix_sharing", "attn_implementation")  # settings of the same computation


def is_finished(path: Path, config: dict) -> bool:
    """Say whether a cell's record is there and was made with the same settings.

    A setting that came after the record counts as the same while it has its default: that is what the code did then.
    How batches are laid out decides no number.
    """
    defaults = {"settings": asdict(RewardModelSettings()), "profile": Profile("").config()}
    try:
        config = {**config, "settings": {k: v for k, v in config["settings"].items() if k not in LAYOUT}}
        stored = records.read_json(path)["config"]
        stored = {**stored, "settings": {k: v for k, v in stored["settings"].items() if k not in LAYOUT}}
        return stored == _as_known(config, stored, plain(defaults))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _as_known(config: dict, stored: dict, defaults: dict) -> dict:
    # `config` without the keys that `stored` does not know and that have their default.
    known = {}
    for key, value in config.items():
        if key in stored:
            inner = isinstance(value, dict) and isinstance(stored[key], dict)
            known[key] = _as_known(value, stored[key], defaults.get(key, {})) if inner else value
        elif key not in defaults or value != defaults[key]:
            known[key] = value
    return known
