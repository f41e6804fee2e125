"""Trainers of the tiny base model, and pairs with every column that a loss may read."""

import math
import tempfile

import numpy as np
import pytest
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

from icrm_lib.training import ICRMConfig, ICRMTrainer

SMALL = {
    "per_device_train_batch_size": 4,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": "none",
    "save_strategy": "no",
    "bf16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_length": None,
}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "SEQ_CLS"}


@pytest.fixture
def config(tmp_path):
    """Build a small configuration, of ICRM or of TRL, with a folder of its own."""

    def config(kind=ICRMConfig, **settings):
        return kind(output_dir=tempfile.mkdtemp(dir=tmp_path), **SMALL | settings)

    return config


@pytest.fixture
def make(base_model, tokenizer, config):
    """Build a trainer with LoRA; `extra` goes to the trainer, everything else to its configuration."""

    def make(
        data, trainer=ICRMTrainer, *, model=str(base_model), tokenizer=tokenizer, lora=True, extra=None, **settings
    ):
        return trainer(
            model,
            config(RewardConfig if trainer is RewardTrainer else ICRMConfig, **settings),
            train_dataset=data,
            processing_class=tokenizer,
            **({"peft_config": LoraConfig(**LORA)} if lora else {}),
            **(extra or {}),
        )

    return make


@pytest.fixture(scope="session")
def rich(pairs_with_logprobs):
    """The same pairs with every column that a loss may read, `margin` excepted."""
    rng = np.random.default_rng(0)

    def columns(row, index):
        new = {"chosen_label": float(index % 3 > 0), "rejected_label": float(index % 4 == 0)}
        for side in ("chosen", "rejected"):
            length = len(row[f"{side}_ids"]) - row["prompt_length"]
            new[f"{side}_reference"] = -rng.uniform(20, 60)
            new[f"{side}_negentropies"], new[f"{side}_logmargins"] = -rng.exponential(size=(2, length))
            new[f"{side}_sibling_ids"] = rng.integers(5, 100, (length, 4))
            new[f"{side}_sibling_logprobs"] = -rng.exponential(size=(length, 4))
            new[f"{side}_step_values"] = np.where(rng.random(length) < 0.6, math.nan, rng.random(length))
        return new

    return pairs_with_logprobs.map(columns, with_indices=True)
