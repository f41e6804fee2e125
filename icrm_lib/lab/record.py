"""The record of a cell: where it lies, all that decides it, and whether it is there."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from icrm_lib import records, runtime
from icrm_lib.lab.cells import ENSEMBLE_SIZE, ROLLOUTS, VERSION, Cell
from icrm_lib.lab.purposes import PURPOSES
from icrm_lib.profiles import Profile, RewardModelSettings


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


def is_finished(path: Path, config: dict) -> bool:
    """Say whether a cell's record is there and was made with the same settings.

    A setting that came after the record counts as the same while it has its default: that is what the code did then.
    """
    try:
        stored = records.read_json(path)["config"]
        return stored == _as_known(config, stored, plain(DEFAULTS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


DEFAULTS = {"settings": asdict(RewardModelSettings()), "profile": Profile("").config()}


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
