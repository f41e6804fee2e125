"""Time and memory of one training step of every method, against Bradley-Terry on the same model and batches.

    python benchmarks/method_cost.py [--hidden 256 --layers 4 --vocabulary 32000 --pairs 8 --length 256 --steps 8]

Each method runs in a process of its own, so that its peak memory is its own: resident memory at the highest, less what
the process held before the first step. The model has random weights, the batches random tokens. Prints one JSON record
and writes it to `results/bench/method_cost.json`. The generator is not in a step, its answers are cached: its own rows
are a step of its fit and its pass, over as many pairs. A method's whole cost is its steps, and where it reads the
generator one pass over the pairs and the generator's steps once.
"""

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

os.environ["ICRM_UNATTENDED"] = "1"

from icrm_lib import records, runtime

runtime.quiet()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from icrm_lib.generator import fit_generator, model_scorer  # noqa: E402
from icrm_lib.methods import METHODS, method_settings, train_reward_model  # noqa: E402
from icrm_lib.profiles import GeneratorSettings, RewardModelSettings  # noqa: E402
from icrm_lib.testbed import Language  # noqa: E402


def random_pairs(args: argparse.Namespace) -> Dataset:
    """Random token ids of full length, the first quarter the prompt, and every column that some method reads."""
    rng, count, prompt = np.random.default_rng(0), args.pairs * args.steps, args.length // 4
    ids = rng.integers(10, args.vocabulary, (2, count, args.length))
    ids[:, :, :prompt] = ids[0, :, :prompt]
    columns = {"prompt_length": [prompt] * count, "margin": rng.random(count)}
    for side, row in zip(("chosen", "rejected"), ids, strict=True):
        weights = np.log(rng.random((3, count, args.length - prompt))).astype(np.float32)
        names = ("logprobs", "negentropies", "logmargins")
        columns |= {f"{side}_ids": row} | {f"{side}_{n}": w for n, w in zip(names, weights, strict=True)}
        columns |= {f"{side}_step_values": rng.random((count, args.length - prompt)), f"{side}_label": [1.0] * count}
        columns[f"{side}_reference"] = [-100.0] * count
    return Dataset.from_dict(columns)


def small_model(args: argparse.Namespace) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        intermediate_size=4 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.hidden // 64),
        max_position_embeddings=args.length,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def cost(method: str, args: argparse.Namespace) -> dict[str, float]:
    """Train one method for a few steps; seconds a step (median, without the first two) and peak memory."""
    torch.manual_seed(0)
    settings = method_settings(
        RewardModelSettings(lora_rank=32, lora_alpha=64, batch_size=args.pairs, epochs=1), method
    )
    data = random_pairs(args)
    if not settings.margin:
        data = data.remove_columns("margin")
    with tempfile.TemporaryDirectory() as folder:
        small_model(args).save_pretrained(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        stamps: list[float] = []
        log = Path(folder) / "run"
        with stamped(stamps):
            train_reward_model(folder, Language().tokenizer, data, replace(settings, mlp_size=1024), folder=log, seed=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": float(np.median(np.diff(stamps)[1:])), "peak_mib": (peak - before) / 1024}


def generator_cost(part: str, args: argparse.Namespace) -> dict[str, float]:
    """One part of the generator, "fit" or "pass": seconds for as many pairs as a step has, and peak memory."""
    torch.manual_seed(0)
    data, settings = random_pairs(args), GeneratorSettings(lora_rank=32, lora_alpha=64, batch_size=args.pairs)
    stamps: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model = small_model(args)
        model.save_pretrained(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if part == "fit":
            with stamped(stamps):
                fit_generator(folder, data, settings, Path(folder) / "run", seed=0)
        else:
            score = model_scorer(model.eval(), 0, tokens_per_batch=2 * args.pairs * args.length)
            sides = [zip(data[f"{side}_ids"], data["prompt_length"], strict=True) for side in ("chosen", "rejected")]
            rows = [row for both in zip(*sides, strict=True) for row in both]
            for start in range(0, len(rows), 2 * args.pairs):
                score(rows[start : start + 2 * args.pairs])
                stamps.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": float(np.median(np.diff(stamps)[1:])), "peak_mib": (peak - before) / 1024}


@contextmanager
def stamped(stamps: list[float]) -> Iterator[None]:
    """Note the time at the end of every optimiser step."""
    hook = register_optimizer_step_post_hook(lambda *_: stamps.append(time.perf_counter()))
    try:
        yield
    finally:
        hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"hidden": 256, "layers": 4, "vocabulary": 32000, "pairs": 8, "length": 256, "steps": 8}
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    jobs = {method: (cost, method) for method in METHODS}
    jobs |= {f"generator {part}": (generator_cost, part) for part in ("fit", "pass")}
    costs = {}
    for name, (measure, what) in jobs.items():
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            costs[name] = pool.apply(measure, (what, args))
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
    path = records.write_record("method_cost", "bench", vars(args), table)
    print(json.dumps(records.read_json(path)))


if __name__ == "__main__":
    main()
