"""The generator's pass, from a dataset to the cache on disk: its speed, the size of what it writes, how it grows.

    python bench/generator_cache.py [--hidden 256 --layers 4 --vocabulary 32000 --pairs 64 --length 256 --rounds 7]

*Speed*: tokens a second of `cached_logprobs` with `model_scorer`, everything included (fingerprints, padding, softmax,
files, checksums), over those of a bare forward pass: the causal model's own, logits of all positions in its own type,
without gradient, over the very same batches, made beforehand. They take turns; every pass starts without a cache.
*Size*: bytes of the cache's folder a response token. *Growth*: the pass over 10 times as many pairs with a tiny model,
each in a process of its own; peak memory is all that the process allocates, libraries included, without the mapped
files, which the system takes back when it needs the room. Prints one JSON record and writes it to
`results/bench/generator_cache.json`.
"""

import argparse
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import common
import numpy as np
import torch
from datasets import Dataset

from icrm_lib.generator import cached_logprobs, model_scorer
from icrm_lib.generator.cache import CACHE_TYPES, WINDOW
from icrm_lib.language_model.causal import batches_of, padded

TINY = {"hidden": 16, "layers": 1, "vocabulary": 64, "length": 32}


def bare_batches(data: Dataset, tokens_per_batch: int) -> list[dict[str, torch.Tensor]]:
    """Return the batches that the pass makes of the data: a window of pairs sorted by length, cut by tokens."""
    batches = []
    for window in data.iter(batch_size=WINDOW):
        rows = window["chosen_ids"] + window["rejected_ids"]
        for members in batches_of(range(len(rows)), [len(row) for row in rows], tokens=tokens_per_batch):
            batches.append(padded([rows[i] for i in members], 0))
    return batches


@torch.no_grad()
def bare_pass(model: torch.nn.Module, batches: list[dict[str, torch.Tensor]]) -> None:
    for batch in batches:
        model(**{name: value.to(model.device) for name, value in batch.items()}, use_cache=False)


def speed(args: argparse.Namespace, folder: Path) -> dict:
    """Let the pass and the bare forward pass take turns; seconds, tokens a second and their ratio."""
    data = common.unscored(common.random_pairs(args.pairs, args.length, args.vocabulary, shortest=args.length // 2))
    tokens = sum(len(row) for side in ("chosen_ids", "rejected_ids") for row in data[side])
    model = common.small_llama(args.hidden, args.layers, args.vocabulary, args.length).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    batches = bare_batches(data, args.tokens_per_batch)

    def whole() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        cached_logprobs(data, lambda: model_scorer(model, 0, tokens_per_batch=args.tokens_per_batch), folder, {})

    seconds = common.take_turns({"bare": lambda: bare_pass(model, batches), "pass": whole}, args.rounds, warm=1)
    return {
        "tokens": tokens,
        "median_tokens_per_second": {name: round(tokens / float(np.median(s))) for name, s in seconds.items()},
        "speed_to_bare": common.quartiles(seconds["bare"] / seconds["pass"]),
    }


def bytes_per_token(folder: Path) -> dict[str, float]:
    """Return the size of the cache of 1,000 pairs with responses of 96 to 192 tokens, a response token."""
    data = common.random_pairs(1000, 256, 1000, shortest=160)
    tokens = sum(len(row) for side in ("chosen", "rejected") for row in data[f"{side}_logprobs"])
    sizes = {}
    for cache_type in CACHE_TYPES:
        # The size does not depend on the values, so nobody is asked.
        def answers(rows):
            return [np.zeros(len(ids) - start, dtype=np.float32) for ids, start in rows]

        cached_logprobs(common.unscored(data), lambda: answers, folder / cache_type, {}, cache_type=cache_type)
        files = [path for path in (folder / cache_type).rglob("*") if path.is_file()]
        sizes[cache_type] = round(sum(path.stat().st_size for path in files) / tokens, 3)
    return sizes


def grown_pass(source: str, folder: str) -> tuple[float, float]:
    """One pass of the tiny model over pairs on disk; its seconds and its peak memory in MiB."""
    data, model = Dataset.from_file(source), common.small_llama(**TINY).eval()
    with peak_of_its_own() as mib:
        start = time.perf_counter()
        cached_logprobs(data, lambda: model_scorer(model, 0), Path(folder), {})
        seconds = time.perf_counter() - start
    return seconds, mib[0]


@contextmanager
def peak_of_its_own() -> Iterator[list[float]]:
    """Watch the memory that this process itself has allocated (Linux): its peak inside the block, in MiB."""
    peaks, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            own = re.search(r"RssAnon:\s+(\d+) kB", common.STATUS.read_text())[1]
            peaks[0] = max(peaks[0], int(own) / 2**10)

    common.hold()  # what was freed before is not to count
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        done.set()
        thread.join()


def growth(args: argparse.Namespace, folder: Path) -> dict:
    """The pass over `--grown` pairs and over 10 times as many; both three times, in turns."""
    sizes = (args.grown, 10 * args.grown)
    for count in sizes:
        data = common.unscored(common.random_pairs(count, TINY["length"], TINY["vocabulary"], shortest=16))
        data.save_to_disk(str(folder / str(count)))
    runs = {count: [] for count in sizes}
    for turn in range(args.grown_rounds):
        for count in sizes:
            (source,) = (folder / str(count)).glob("*.arrow")
            runs[count].append(common.in_own_process(grown_pass, str(source), str(folder / f"{count}-{turn}")))
    seconds, mib = (np.array([[run[i] for run in runs[count]] for count in sizes]) for i in (0, 1))
    return {
        "pairs": list(sizes),
        "seconds": [common.quartiles(values, 2) for values in seconds],
        "peak_mib": [common.quartiles(values, 1) for values in mib],
        "time_of_10_times": common.quartiles(seconds[1] / seconds[0]),
        "memory_of_10_times": common.quartiles(mib[1] / mib[0]),
    }


def main() -> None:
    sizes = {"hidden": 256, "layers": 4, "vocabulary": 32000, "pairs": 64, "length": 256, "tokens_per_batch": 4096}
    args = common.read_sizes(__doc__, **sizes, rounds=7, grown=10_000, grown_rounds=3)
    with tempfile.TemporaryDirectory() as folder:
        metrics = {
            "speed": speed(args, Path(folder) / "speed"),
            "bytes_per_response_token": bytes_per_token(Path(folder)),
            "growth": growth(args, Path(folder)),
        }
    common.finish("generator_cache", args, metrics)


if __name__ == "__main__":
    main()
