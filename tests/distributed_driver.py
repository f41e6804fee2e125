"""Train the cases of test_distributed.py, in this process or in each of those that torch.distributed.run starts.

python -m torch.distributed.run --nproc_per_node=2 tests/distributed_driver.py BASE DATA FOLDER BATCH
"""

import json
import os
import sys
from pathlib import Path

import torch
from datasets import load_from_disk
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.trainer import ICRMTrainer

# Of the last batch of four 13 pairs leave one, and the second process has none of it; 15 leave it one of three.
CASES = {
    "icrm": (13, {"sft_weight": 0.1}),
    "icrm_padding_free": (15, {"sft_weight": 0.1, "padding_free": True}),
    "bradley_terry": (15, {"consistency_weight": 0.0, "sft_weight": 0.0}),
    "centred": (13, {"consistency_weight": 0.0, "sft_weight": 0.0, "center_rewards_coefficient": 0.1}),
    "outcome": (15, {"loss": "outcome", "sft_weight": 0.1}),
    "grm": (13, {"consistency_weight": 0.0, "sft_weight": 0.1, "text_form": "grm_dpo_noref"}),
    "resumed": (13, {"sft_weight": 0.1, "save_strategy": "steps", "save_steps": 2}),  # from the middle of an epoch
    "accumulation": (13, {"gradient_accumulation_steps": 2}),
}
# float64 and plain gradient descent: what differs is rounding, and Adam does not blow it up.
ALWAYS = {"num_train_epochs": 2, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1, "report_to": "none"} | {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "disable_tqdm": True,
    "max_length": None,
    "save_strategy": "no",
}


def train(case: str, base: Path, data: Path, out: Path, batch: int) -> ICRMTrainer:
    """Train one case, where it saves checkpoints a second time from the first of them; write this process's log."""
    rows, terms = CASES[case]
    launched = {"ddp_backend": "gloo"} if "RANK" in os.environ else {}
    args = ICRMConfig(output_dir=str(out), per_device_train_batch_size=batch, **ALWAYS | terms | launched)
    for start in (None, str(out / "checkpoint-2")) if args.save_strategy == "steps" else (None,):
        torch.manual_seed(0)
        trainer = ICRMTrainer(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float64),
            args,
            train_dataset=load_from_disk(str(data)).select(range(rows)),
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"),
        )
        trainer.model.double()  # PEFT puts LoRA in float32
        trainer.train(resume_from_checkpoint=start)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    found = {"S": float(trainer.scale.value), "processes": trainer.accelerator.num_processes}
    found |= {"norms": [entry["grad_norm"] for entry in log], "losses": [entry["loss"] for entry in log]}
    out.mkdir(parents=True, exist_ok=True)
    (out / f"log-{os.environ.get('RANK', 0)}.json").write_text(json.dumps(found))
    trainer.save_model(str(out))  # the first process alone writes
    return trainer


def train_all(base: Path, data: Path, folder: Path, batch: int) -> None:
    for case in CASES:
        trainer = train(case, base, data, folder / case, batch)
    trainer.accelerator.end_training()


if __name__ == "__main__":
    train_all(*map(Path, sys.argv[1:4]), int(sys.argv[4]))
