"""Time and memory of one training step of every method, against Bradley-Terry on the same model and batches.

    python bench/method_cost.py [--hidden 256 --layers 4 --vocabulary 32000 --pairs 8 --length 256 --steps 8]

Each method runs in a process of its own, so that its peak memory is its own: resident memory at the highest, less what
was held at the first forward pass. The model has random weights, the batches random tokens. Prints one JSON record
and writes it to `results/bench/method_cost.json`. The generator is not in a step, its answers are cached: its own rows
are a step of its fit and its pass, over as many pairs. A method's whole cost is its steps, and where it reads the
generator one pass over the pairs and the generator's steps once.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import finish, hold, in_own_process, peak, random_pairs, read_sizes, small_llama
from datasets import Dataset
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from icrm_lib.generator import MOST_SIBLINGS, fit_generator, model_scorer
from icrm_lib.methods import METHODS, method_settings
from icrm_lib.profiles import GeneratorSettings, RewardModelSettings
from icrm_lib.testbed import Language
from icrm_lib.training.fit import train_reward_model


def every_column(args: argparse.Namespace) -> Dataset:
    """Random pairs of full length with every column that some method reads."""
    rng, count = np.random.default_rng(1), args.pairs * args.steps
    data = random_pairs(count, args.length, args.vocabulary).add_column("margin", rng.random(count))
    answers = (count, args.length - args.length // 4)
    for side in ("chosen", "rejected"):
        more = {f"{side}_{name}": np.log(rng.random(answers)) for name in ("negentropies", "logmargins")}
        more |= {f"{side}_sibling_ids": rng.integers(5, args.vocabulary, (*answers, MOST_SIBLINGS))}
        more |= {f"{side}_sibling_logprobs": np.log(rng.random((*answers, MOST_SIBLINGS)) / MOST_SIBLINGS)}
        more |= {f"{side}_step_values": rng.random(answers)}
        more |= {f"{side}_label": np.ones(count), f"{side}_reference": np.full(count, -100.0)}
        for name, values in more.items():
            data = data.add_column(name, values.tolist())
    return data


def cost(method: str, args: argparse.Namespace) -> dict[str, float]:
    """Train one method for a few steps; seconds a step (median, without the first two) and peak memory."""
    settings = RewardModelSettings(lora_rank=32, lora_alpha=64, batch_size=args.pairs, epochs=1)
    settings = replace(method_settings(settings, method), mlp_size=1024)
    data = every_column(args)
    if not settings.margin:
        data = data.remove_columns("margin")
    with tempfile.TemporaryDirectory() as folder:
        small_model(args).save_pretrained(folder)
        with watched() as (stamps, held):
            train_reward_model(folder, Language().tokenizer, data, settings, folder=Path(folder) / "run", seed=0)
    return {"seconds": float(np.median(np.diff(stamps)[1:])), "peak_mib": peak(held[0])}


def generator_cost(part: str, args: argparse.Namespace) -> dict[str, float]:
    """One part of the generator, "fit" or "pass": seconds for as many pairs as a step has, and peak memory."""
    data, settings = every_column(args), GeneratorSettings(lora_rank=32, lora_alpha=64, batch_size=args.pairs)
    with tempfile.TemporaryDirectory() as folder, watched() as (stamps, held):
        model = small_model(args)
        model.save_pretrained(folder)
        if part == "fit":
            fit_generator(folder, data, settings, Path(folder) / "run", seed=0)
        else:
            score = model_scorer(model.eval(), 0, tokens_per_batch=2 * args.pairs * args.length)
            sides = [zip(data[f"{side}_ids"], data["prompt_length"], strict=True) for side in ("chosen", "rejected")]
            rows = [row for both in zip(*sides, strict=True) for row in both]
            for start in range(0, len(rows), 2 * args.pairs):
                score(rows[start : start + 2 * args.pairs])
                stamps.append(time.perf_counter())
    return {"seconds": float(np.median(np.diff(stamps)[1:])), "peak_mib": peak(held[0])}


def small_model(args: argparse.Namespace) -> torch.nn.Module:
    return small_llama(args.hidden, args.layers, args.vocabulary, args.length)


@contextmanager
def watched() -> Iterator[tuple[list[float], list[float]]]:
    """Note the time at the end of every optimiser step, and at the first forward pass what memory is held."""
    stamps, held = [], []

    def first(*_) -> None:
        if not held:
            held.append(hold())
            hooks[1].remove()

    hooks = [
        register_optimizer_step_post_hook(lambda *_: stamps.append(time.perf_counter())),
        register_module_forward_pre_hook(first),
    ]
    try:
        yield stamps, held
    finally:
        for hook in hooks:
            hook.remove()


def main() -> None:
    sizes = {"hidden": 256, "layers": 4, "vocabulary": 32000, "pairs": 8, "length": 256, "steps": 8}
    args = read_sizes(__doc__, **sizes, most_methods=len(METHODS))
    jobs = {method: (cost, method) for method in list(METHODS)[: args.most_methods]}
    jobs |= {f"generator {part}": (generator_cost, part) for part in ("fit", "pass")}
    costs = {name: in_own_process(measure, what, args) for name, (measure, what) in jobs.items()}
    base = costs["bt"]
    table = {
        method: {
            "seconds": round(c["seconds"], 4),
            "time_ratio": round(c["seconds"] / base["seconds"], 3),
            "peak_mib": round(c["peak_mib"], 1),
            "memory_ratio": round(c["peak_mib"] / base["peak_mib"], 3),
        }
        for method, c in costs.items()
    }
    finish("method_cost", args, table)


if __name__ == "__main__":
    main()
