"""Peak memory that `make plan` foretells against the peak that is measured, for training a reward model with ICRM.

    python bench/plan_memory.py [--pairs 8 --length 256 --steps 2]

Each number is that of a small Llama trained in a process of its own, through `training.train_reward_model`, on pairs of
full length. On a GPU it is the memory of the tensors, in bfloat16. On a CPU it is the resident memory of the process,
in float32: `measured_mib` with a C library that gives back at once what is freed, so that the tensors alone are left,
and `resident_mib` with one as it comes, which keeps much of it. A tiny model is trained before, so that what the
libraries load counts as held. `ratio` sums up foretold / measured by median and quartiles, `least_ratio` and
`greatest_ratio` by their ends, `within_percent` by the largest error, rounded up. Prints one JSON record and writes it
to `results/bench/plan_memory.json`.
"""

import argparse
import math
import tempfile
from pathlib import Path

import common
import numpy as np

from icrm_lib import runtime
from icrm_lib.methods import method_settings
from icrm_lib.plan.costs import reward_model_cost
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.testbed import Language
from icrm_lib.training.fit import train_reward_model

# width, layers, vocabulary
SIZES = {"tiny": (128, 4, 8000), "small": (256, 4, 32000), "deep": (256, 8, 8000), "wide": (512, 4, 16000)}


def measured(size: str, checkpointing: bool, exact: bool, args: argparse.Namespace) -> float:
    """Return the peak of a training in MiB; `exact` makes a CPU give back what is freed."""
    if exact:
        common.give_back_at_once()
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in {"first": (64, 1, 1000), "second": SIZES[size]}.items():
            path = Path(folder) / name
            common.small_llama(*sizes, args.length).save_pretrained(path)
            data = common.random_pairs(args.pairs * args.steps, args.length, sizes[-1])
            held = common.hold()
            options = {"folder": path / "run", "seed": 0}
            train_reward_model(path, Language().tokenizer, data, settings_of(checkpointing, args), **options)
    return common.peak(held)


def planned(size: str, checkpointing: bool, args: argparse.Namespace) -> float:
    """Return the foretold peak in MiB."""
    config = common.llama_config(*SIZES[size], args.length, tie_word_embeddings=True)
    options = {"max_length": args.length, "length": args.length, "bf16": runtime.device() == "cuda"}
    return reward_model_cost(config, settings_of(checkpointing, args), **options).peak_bytes / 2**20


def settings_of(checkpointing: bool, args: argparse.Namespace) -> RewardModelSettings:
    sizes = {"lora_rank": 32, "lora_alpha": 64, "batch_size": args.pairs, "epochs": 1}
    return method_settings(RewardModelSettings(**sizes, gradient_checkpointing=checkpointing), "icrm")


def compared(size: str, checkpointing: bool, args: argparse.Namespace) -> dict[str, float]:
    foretold = planned(size, checkpointing, args)
    real = common.in_own_process(measured, size, checkpointing, True, args)
    row = {"planned_mib": foretold, "measured_mib": real, "ratio": foretold / real}
    if runtime.device() == "cpu":
        row["resident_mib"] = common.in_own_process(measured, size, checkpointing, False, args)
    return {name: round(value, 3 if name == "ratio" else 1) for name, value in row.items()}


def main() -> None:
    args = common.read_sizes(__doc__, pairs=8, length=256, steps=2)
    table = {
        f"{size}, checkpointing {'on' if checkpointing else 'off'}": compared(size, checkpointing, args)
        for size in SIZES
        for checkpointing in (False, True)
    }
    ratios = np.array([row["ratio"] for row in table.values()])
    summary = {"least_ratio": ratios.min(), "greatest_ratio": ratios.max()}
    summary["within_percent"] = math.ceil(round(100 * np.abs(ratios - 1).max(), 6))
    common.finish("plan_memory", args, table | {"ratio": common.quartiles(ratios)} | summary)


if __name__ == "__main__":
    main()
