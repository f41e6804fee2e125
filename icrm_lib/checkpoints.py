"""What a training leaves on disk while it runs: a log, and checkpoints that are whole or not resumed from."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerCallback

from icrm_lib import records, runtime

logger = logging.getLogger(__name__)

LOGGING_STEPS = 5
KEPT = 2  # the newest may be the one that a kill left half-written


class LogFile(TrainerCallback):
    """Append every log entry of a trainer to a JSON-lines file as it happens; a resumed run first copies the old."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero and state.global_step > 0:
            lines = [json.dumps({"step": entry["step"], **entry}) + "\n" for entry in state.log_history]
            self.path.write_text("".join(lines), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **(logs or {})}) + "\n")


class SealedCheckpoints(TrainerCallback):
    """Seal every checkpoint (`records.seal`) once all processes have written their part of it.

    Args:
        key: what the training depends on (JSON-able); `newest_checkpoint` asks for the same.
    """

    def __init__(self, key: dict[str, Any]):
        self.key = key

    def on_save(self, args, state, control, **kwargs):
        PartialState().wait_for_everyone()
        if state.is_world_process_zero:
            records.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", self.key)


def newest_checkpoint(folder: Path, key: dict[str, Any]) -> str | None:
    """Return the newest sealed checkpoint in `folder`, None where there is none to resume from.

    Half-written and damaged ones are removed with a warning; the run that left them makes them again.

    Args:
        folder: where a trainer with `SealedCheckpoints(key)` writes.
        key: see there.

    Raises:
        ValueError: a checkpoint there is sealed, but belongs to another training.
    """
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if records.is_whole(path, key, verify=True):
            return str(path)
        if records.is_whole(path, records.key_of(path), verify=True):
            raise ValueError(
                f"{runtime.display_path(path)} is a checkpoint of another training; move it away, or give this one "
                "another folder"
            )
        logger.warning("%s is half-written or damaged; going on without it", runtime.display_path(path))
        if runtime.process_index() == 0:
            shutil.rmtree(path, ignore_errors=True)
    return None


def saving(folder: Path | None, steps: int) -> dict[str, Any]:
    """Return the training arguments of log and checkpoints.

    Args:
        folder: of the checkpoints; none are written without.
        steps: a checkpoint every so many steps, rounded up to a step that is logged: what is averaged between two
            log entries is not in a checkpoint. 0 for none.
    """
    arguments: dict[str, Any] = {"logging_steps": LOGGING_STEPS, "save_strategy": "no"}
    if folder is not None and steps:
        steps = -(-steps // LOGGING_STEPS) * LOGGING_STEPS
        arguments |= {"save_strategy": "steps", "save_steps": steps, "save_total_limit": KEPT}
        arguments |= {"output_dir": str(folder)}
    return arguments
