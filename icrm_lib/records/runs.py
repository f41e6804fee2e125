"""The record of a run: its configuration, what else decided it, and its numbers."""

import subprocess
from pathlib import Path
from typing import Any

from icrm_lib import runtime
from icrm_lib.records.files import write_json


def environment() -> dict[str, Any]:
    """Return what a number depends on beside its configuration: versions, device, processor, threads, commit."""
    import torch

    return {
        "versions": runtime.versions(),
        "device": runtime.device_name(),
        "processor": runtime.processor_name(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "-C", str(runtime.project_root()), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # an unpacked archive without git is a fair way to use the kit


def write_record(noun: str, profile: str, config: dict, metrics: Any) -> Path:
    """Write `results/<profile>/<noun>.json`: {config, environment, metrics}.

    Args:
        noun: the stage, e.g. "reward_model".
        profile: the profile's name.
        config: the resolved configuration.
        metrics: JSON-able results; per seed where there are seeds.

    Raises:
        ValueError: a name that leads out of `results/<profile>`.
    """
    path = runtime.project_root() / "results" / runtime.plain_name(profile) / runtime.plain_name(f"{noun}.json")
    return write_json(path, {"config": config, "environment": environment(), "metrics": metrics})
