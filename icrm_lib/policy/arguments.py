"""What DPO and GRPO are told in the same way: where they start, and the trainer's arguments."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from icrm_lib import runtime
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.profiles import RewardModelSettings


def trainer_arguments(settings: RewardModelSettings, folder: Path, seed: int) -> dict[str, Any]:
    """Return the arguments of TRL's trainers that do not depend on the objective; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = runtime.device() == "cuda"
    return {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_strategy": "no",
        "logging_steps": 5,
        "report_to": "none",
        "disable_tqdm": not runtime.watched(),
        "seed": seed,
    }


def starting_policy(base_model: str | Path) -> PreTrainedModel:
    return load_causal_lm(base_model, dtype=torch.bfloat16 if runtime.device() == "cuda" else torch.float32)
