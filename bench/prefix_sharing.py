"""Training step on pairs of uneven lengths whose prompts are as long as their responses, against TRL's RewardTrainer.

    python bench/prefix_sharing.py [--hidden 256 --layers 4 --vocabulary 32000 --pairs 8 --rounds 9]

Lengths are log-normal, prompts as long as responses in the median. All take turns on the same batches, in one process:
TRL's Bradley-Terry step, ICRM padded as TRL pads, without padding, and with the prompt of a pair computed once; with
and without the text term. Every ratio is the median over the rounds, with its quartiles. For memory each has a process
of its own: the highest in a few steps, less what it held before the first. Prints one JSON record and writes it to
`results/bench/prefix_sharing.json`; fails where a layout changes the loss by more than 1e-4.
"""

import argparse
import tempfile

import common
import numpy as np
import torch
from datasets import Dataset

from icrm_lib.reward_model.head import reward_head

LONGEST = 512
LAYOUTS = {  # what stands before it, and the settings of the trainer
    "padded": {"padding_free": False, "prefix_sharing": False},
    "padding-free": {"padding_free": True, "prefix_sharing": False},
    "shared": {"padding_free": True, "prefix_sharing": True},
}
KINDS = ("bt", *(f"{kind}, {layout}" for kind in ("icrm", "icrm + sft") for layout in LAYOUTS))
MEMORY_STEPS = 2  # from the second on the optimiser has its state


def uneven_pairs(count: int, vocabulary: int) -> Dataset:
    """Return random pairs whose prompts and responses have lengths of one log-normal distribution."""
    rng = np.random.default_rng(0)
    prompts = np.clip(rng.lognormal(np.log(110), 0.6, count), 4, LONGEST // 2).astype(int)
    responses = np.clip(rng.lognormal(np.log(110), 0.6, (count, 2)), 4, LONGEST - prompts[:, None]).astype(int)
    return common.with_one_prompt(common.pairs_of(prompts, responses, vocabulary, rng))


def make(name: str, base: str, data: Dataset, pairs: int):
    """Build the trainer of a name of `KINDS`; its rewards differ visibly, or losses could not."""
    kind, _, layout = name.partition(", ")
    trainer = common.make_trainer(kind, base, data, pairs, **LAYOUTS.get(layout, {}))
    with torch.no_grad():
        for weight in reward_head(trainer.model).parameters():
            weight.mul_(50)
    return trainer


def peak_of(name: str, base: str, args: argparse.Namespace) -> float:
    """Return the peak memory of a few steps in MiB; called in a process of its own."""
    step = common.trainer_step(make(name, base, uneven_pairs(args.pairs * MEMORY_STEPS, args.vocabulary), args.pairs))
    return common.seconds_and_peak(lambda: [step() for _ in range(MEMORY_STEPS)])[1]


def main() -> None:
    args = common.read_sizes(__doc__, hidden=256, layers=4, vocabulary=32000, pairs=8, rounds=9)
    with tempfile.TemporaryDirectory() as base:
        common.small_llama(args.hidden, args.layers, args.vocabulary, LONGEST).save_pretrained(base)
        data, warm = uneven_pairs(args.pairs * (args.rounds + 2), args.vocabulary), 2
        losses: dict[str, list[float]] = {name: [] for name in KINDS}
        steps = {}
        for name in KINDS:
            step = common.trainer_step(make(name, base, data, args.pairs), update=False)
            steps[name] = lambda step=step, name=name: losses[name].append(float(step()))
        seconds = common.take_turns(steps, args.rounds, warm=warm)
        memory = {name: common.in_own_process(peak_of, name, base, args) for name in KINDS}
    differences = {
        f"{kind}, {layout}": float(np.abs(np.subtract(losses[f"{kind}, {layout}"], losses[f"{kind}, padded"])).max())
        for kind in ("icrm", "icrm + sft")
        for layout in ("padding-free", "shared")
    }
    metrics = {
        "median_seconds": {name: round(float(np.median(values)), 4) for name, values in seconds.items()},
        "time_to_bt": {name: common.quartiles(values / seconds["bt"]) for name, values in seconds.items()},
        "memory_mib": {name: round(value, 1) for name, value in memory.items()},
        "memory_to_bt": {name: round(value / memory["bt"], 3) for name, value in memory.items()},
        "largest_difference_of_loss": differences,
    }
    common.finish("prefix_sharing", args, metrics)
    if max(differences.values()) > 1e-4:
        raise SystemExit(f"a layout changed the loss: {differences}")


if __name__ == "__main__":
    main()
