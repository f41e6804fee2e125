"""Where a training begins, as hashes, and what it leaves on disk: a log, whole checkpoints, a bad batch."""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import pyarrow as pa
import pyarrow.compute as pc
import torch
import xxhash
from accelerate import PartialState
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback

from icrm_lib import records, runtime

logger = logging.getLogger(__name__)

LOGGING_STEPS = 5
KEPT = 2  # the newest may be the one that a kill left half-written

PAIRS = ("chosen_ids", "rejected_ids", "prompt_length")

_known: WeakKeyDictionary[Dataset, dict[tuple[str, ...], str]] = WeakKeyDictionary()  # a data set never changes


def data_fingerprint(dataset: Dataset, columns: tuple[str, ...] = PAIRS) -> str:
    """Return a hash of columns of integers or lists of integers, whatever transformations led to them.

    The Arrow buffers are hashed, through the indices of `select`, once a data set.
    """
    known = _known.setdefault(dataset, {})
    if columns in known:
        return known[columns]
    digest = xxhash.xxh3_128()
    for window in dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=1024):
        for name in columns:
            column = window[name].combine_chunks()
            parts = [column]
            if not pa.types.is_integer(column.type):  # lists, whose lengths say where each ends
                parts = [pc.list_value_length(column), column.flatten()]
            for part in parts:
                digest.update(part.cast(pa.int64()).to_numpy())
    known[columns] = digest.hexdigest()
    return known[columns]


def model_fingerprint(path: str | Path) -> str:
    """Return a hash of a local model's weights and configuration, or of a hub id's name and downloaded commit.

    Args:
        path: local directory (every `.safetensors` file, `config.json` and tokenizer file counts) or hub id.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = try_to_load_from_cache(str(path), "config.json")
        return f"hub:{path}@{Path(config).parent.name}" if isinstance(config, str) else f"hub:{path}"
    names = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".jinja"})
    return records.fingerprint({p.name: records.file_checksum(p) for p in names if p.name != records.MANIFEST})


class LogFile(TrainerCallback):
    """Append every log entry of a trainer to a JSON-lines file as it happens; a resumed run first copies the old."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
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

    Raises:
        FloatingPointError: while training, a weight is not finite; the checkpoint is then not sealed.
    """

    def __init__(self, key: dict[str, Any]):
        self.key = key

    def on_save(self, args, state, control, **kwargs):
        refuse_non_finite_weights(kwargs["model"])
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
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for path in sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True):
        if records.is_sealed(path, key, verify=True):
            return str(path)
        if records.is_sealed(path, records.key_of(path), verify=True):
            raise ValueError(
                f"{runtime.display_path(path)} is a checkpoint of another training; move it away, or give this one "
                "another folder"
            )
        logger.warning("%s is half-written or damaged; going on without it", runtime.display_path(path))
        if runtime.process_index() == 0:
            shutil.rmtree(path, ignore_errors=True)
    return None


def stop_unless_finite(trainer: Trainer, loss: torch.Tensor, batch: dict[str, Any], folder: Path) -> None:
    """Save the batch and raise where loss or gradients are nan or infinite: every later weight would be nan.

    Args:
        trainer: between the backward pass and the optimiser's step.
        loss: of the batch.
        batch: what the loss was computed of; with `line`, the rows are named.
        folder: for `non_finite_batch-<process>.safetensors`.

    Raises:
        FloatingPointError: names the rows, the file and what to do.
    """
    finite = torch.isfinite(loss.detach())
    gradients = [weight.grad for weight in trainer.model.parameters() if weight.grad is not None]
    if gradients and trainer.accelerator.scaler is None:  # a loss scaler for float16 provokes overflows and skips them
        finite = finite & torch.isfinite(torch.nn.utils.get_total_norm(gradients))
    everywhere = trainer.accelerator.reduce(finite.float(), "sum")
    if everywhere >= trainer.accelerator.num_processes:
        return
    path = folder / f"non_finite_batch-{runtime.process_index()}.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    lines = f"rows {batch['line'].tolist()} of the data" if "line" in batch else "its rows have no number"
    what = "loss" if not torch.isfinite(loss) else "gradient" if not finite else "loss or gradient of another process"
    raise FloatingPointError(
        f"the {what} of step {trainer.state.global_step + 1} is not finite; the batch ({lines}) is in "
        f"{runtime.display_path(path)}. Look at these rows, lower the learning rate, or compute in float32"
    )


def refuse_non_finite_weights(model: torch.nn.Module) -> None:
    """Raise where a trained weight is nan or infinite, so that no such model is taken for a finished one."""
    for name, weight in model.named_parameters():
        if weight.requires_grad and not torch.isfinite(weight).all():
            raise FloatingPointError(
                f"{name} holds numbers that are not finite after the last step; lower the learning rate, or compute in "
                "float32"
            )


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
