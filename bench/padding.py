"""Padding in training batches, and what running without it saves: random order, order by length, `padding_free`.

    python bench/padding.py [--hidden 256 --layers 4 --vocabulary 4000 --pairs 8 --batches 100 --rounds 10]

*Share*: padding places among all places of a batch, over an epoch, for log-normal lengths (median 60 tokens a prompt,
sigma 0.8; median 160 a response, sigma 0.7; rows of at most 1,024 tokens) and for the lengths of real pairs, where
`../shared/data` has them. *Step*: the same batches, log-normal and in random order, padded and padding-free, in turns:
the ratio of their times batch by batch, and how far their losses differ, before any update. Prints one JSON record and
writes it to `results/bench/padding.json`.
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from common import finish, make_trainer, pairs_of, quartiles, read_sizes, small_llama, take_turns, trainer_step
from transformers.trainer_pt_utils import LengthGroupedSampler

from icrm_lib import runtime
from icrm_lib.language_model.scratch import scratch_tokenizer
from icrm_lib.reward_model.head import reward_head
from icrm_lib.rows import file_rows
from icrm_lib.training.packing import packing

REAL = ("pandalm_human.jsonl", "alpacaeval_gpt4_train.jsonl")
LONGEST = 1024


def log_normal_lengths(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw lengths of prompts, shape (count,), and of responses, shape (count, 2); rows have at most `LONGEST`."""
    prompts = np.clip(rng.lognormal(np.log(60), 0.8, count), 4, LONGEST // 2).astype(int)
    responses = np.clip(rng.lognormal(np.log(160), 0.7, (count, 2)), 4, LONGEST - prompts[:, None]).astype(int)
    return prompts, responses


def real_lengths(path: Path) -> np.ndarray:
    """Return the tokens of the chosen and rejected rows of a file, in a BPE vocabulary of 8,000 trained on it."""
    texts = [[row["prompt"] + row[side] for side in ("chosen", "rejected")] for _, row in file_rows(path)]
    tokenizer = scratch_tokenizer([text for both in texts for text in both], 8000)
    return np.array([[min(LONGEST, len(ids)) for ids in tokenizer(both)["input_ids"]] for both in texts])


def shares(lengths: np.ndarray, pairs: int) -> dict[str, float]:
    """Return the share of padding over an epoch, by how batches are made.

    Args:
        lengths: tokens of the chosen and the rejected row. Shape: (count, 2).
        pairs: a batch.
    """
    count = len(lengths) // pairs * pairs
    shuffled = np.random.default_rng(0).permutation(len(lengths))[:count]
    longest = lengths.max(1).tolist()
    grouped = list(LengthGroupedSampler(pairs, lengths=longest, generator=torch.Generator().manual_seed(0)))[:count]
    return {
        "random order": _share(padded(lengths[batch]) for batch in shuffled.reshape(-1, pairs)),
        "order by length": _share(padded(lengths[batch]) for batch in np.reshape(grouped, (-1, pairs))),
        "padding_free": _share(packed(lengths[batch]) for batch in shuffled.reshape(-1, pairs)),
    }


def padded(lengths: np.ndarray) -> tuple[int, int]:
    """Return tokens and places of a batch as TRL pads it: chosen and rejected rows together, to the longest."""
    return int(lengths.sum()), lengths.size * int(lengths.max())


def packed(lengths: np.ndarray) -> tuple[int, int]:
    """Return tokens and places of a batch as `padding_free` lays it out."""
    rows = lengths.T.flatten().tolist()
    return sum(rows), packing(rows, max(rows)).tokens.numel()


def _share(batches: Iterable[tuple[int, int]]) -> float:
    tokens, places = np.sum(list(batches), axis=0)
    return round(float(1 - tokens / places), 4)


def compare_steps(folder: str, args: argparse.Namespace) -> dict:
    """Let a padded and a padding-free trainer of the same model take turns on the same batches."""
    small_llama(args.hidden, args.layers, args.vocabulary, LONGEST).save_pretrained(folder)
    warm = 1
    rng = np.random.default_rng(1)
    data = pairs_of(*log_normal_lengths(args.pairs * (warm + args.rounds), rng), args.vocabulary, rng)
    losses: dict[str, list[float]] = {"padded": [], "padding_free": []}
    steps = {}
    for name, found in losses.items():
        trainer = make_trainer("icrm + sft", folder, data, args.pairs, padding_free=name == "padding_free")
        with torch.no_grad():  # rewards that differ visibly, or losses could not
            for weight in reward_head(trainer.model).parameters():
                weight.mul_(50)
        step = trainer_step(trainer, update=False)  # without one both stay the same model
        steps[name] = lambda step=step, found=found: found.append(float(step()))
    seconds = take_turns(steps, args.rounds, warm=warm)
    both = np.array(list(losses.values()))
    return {
        "median_seconds": {name: round(float(np.median(values)), 4) for name, values in seconds.items()},
        "padding_free_to_padded": quartiles(seconds["padding_free"] / seconds["padded"]),
        "largest_difference_of_loss": float(np.abs(both[0] - both[1]).max()),
        "mean_loss": round(float(both.mean()), 4),
    }


def main() -> None:
    sizes = {"hidden": 256, "layers": 4, "vocabulary": 4000, "pairs": 8, "batches": 100, "rounds": 10}
    args = read_sizes(__doc__, **sizes)
    prompts, responses = log_normal_lengths(args.pairs * args.batches, np.random.default_rng(0))
    lengths = {"log-normal": prompts[:, None] + responses}
    files = [runtime.project_root().parent / "shared" / "data" / name for name in REAL]
    lengths |= {path.stem: real_lengths(path) for path in files if path.is_file()}
    with tempfile.TemporaryDirectory() as folder:
        metrics = {
            "share_of_padding": {name: shares(values, args.pairs) for name, values in lengths.items()},
            "tokens_a_row": {name: quartiles(values, 0) for name, values in lengths.items()},
            "step": compare_steps(folder, args),
        }
    finish("padding", args, metrics)


if __name__ == "__main__":
    main()
