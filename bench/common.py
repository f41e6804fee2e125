"""What several benchmarks share: sizes on the command line, a small model, trainers, turns, peak memory, a record.

No benchmark itself: `make bench` leaves it out. Import it before the libraries that it is to keep quiet.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["ICRM_UNATTENDED"] = "1"

from icrm_lib import records, runtime

runtime.quiet()

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel  # noqa: E402
from trl import RewardConfig, RewardTrainer  # noqa: E402

from icrm_lib.generator import LowerStates  # noqa: E402
from icrm_lib.testbed import Language  # noqa: E402
from icrm_lib.training.config import ICRMConfig  # noqa: E402
from icrm_lib.training.trainer import ICRMTrainer  # noqa: E402

LORA = {"r": 32, "lora_alpha": 64, "target_modules": "all-linear"}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def read_sizes(doc: str, **defaults: int) -> argparse.Namespace:
    """Read whole numbers from the command line: `hidden=256` makes the option `--hidden`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    return parser.parse_args()


def llama_config(hidden: int, layers: int, vocabulary: int, length: int, **more: Any) -> LlamaConfig:
    """Return the configuration of a small Llama: heads of 64, MLP four times as wide, `more` as in `LlamaConfig`."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 64),
        max_position_embeddings=length,
        **more,
    )


def small_llama(hidden: int, layers: int, vocabulary: int, length: int) -> LlamaForCausalLM:
    """Return a causal Llama with random weights, always the same, and tied embeddings."""
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(hidden, layers, vocabulary, length, tie_word_embeddings=True))


def random_pairs(count: int, length: int, vocabulary: int, *, shortest: int | None = None, seed: int = 0) -> Dataset:
    """Return pairs as `pairs_of` makes them; a quarter of `length` is the prompt.

    Args:
        count: pairs.
        length: tokens of the longest row.
        vocabulary: see `pairs_of`.
        shortest: lengths are uniform from here to `length`; every row has `length` tokens when None.
        seed: of all draws.
    """
    rng, prompt = np.random.default_rng(seed), length // 4
    lengths = rng.integers(max(prompt + 2, shortest or length), length + 1, (count, 2))
    return pairs_of(np.full(count, prompt), lengths - prompt, vocabulary, rng)


def pairs_of(prompts: np.ndarray, responses: np.ndarray, vocabulary: int, rng: np.random.Generator) -> Dataset:
    """Return pairs of random token ids with random log-probabilities of their response tokens.

    Args:
        prompts: tokens of each prompt. Shape: (count,).
        responses: tokens of each chosen and rejected response. Shape: (count, 2).
        vocabulary: ids are below it, and 10 at least.
        rng: draws both.
    """
    table: dict[str, Any] = {"prompt_length": prompts}
    for side, lengths in zip(("chosen", "rejected"), responses.T, strict=True):
        rows = prompts + lengths
        logprobs = np.log(rng.uniform(0.01, 1.0, lengths.sum())).astype(np.float32)
        table[f"{side}_ids"] = _lists(rng.integers(10, vocabulary, rows.sum()), rows)
        table[f"{side}_logprobs"] = _lists(logprobs, lengths)
    return Dataset(pa.table(table))


def with_one_prompt(pairs: Dataset) -> Dataset:
    """Give the rejected side of each pair the prompt of the chosen one."""

    def shared(row: dict[str, Any]) -> dict[str, Any]:
        size = row["prompt_length"]
        return {"rejected_ids": row["chosen_ids"][:size] + row["rejected_ids"][size:]}

    return pairs.map(shared)


def unscored(pairs: Dataset) -> Dataset:
    """Return pairs without the log-probabilities: what the generator is asked about."""
    return pairs.select_columns(["chosen_ids", "rejected_ids", "prompt_length"])


def _lists(values: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """Cut an array into lists of the given lengths: a column of a dataset."""
    return pa.ListArray.from_arrays(pa.array(np.r_[0, lengths.cumsum()], pa.int32()), pa.array(values))


def make_trainer(
    kind: str,
    base: str | PreTrainedModel,
    data: Dataset,
    pairs: int,
    *,
    lm_head: torch.Tensor | None = None,
    frozen: int = 0,
    states: LowerStates | None = None,
    **settings: Any,
) -> RewardTrainer:
    """Build "bt" (TRL's own trainer), "icrm" (cached probabilities) or "icrm + sft": same LoRA, same batches.

    Args:
        kind: see above.
        base: folder of a model, or a model.
        data: what `random_pairs` returns.
        pairs: a batch.
        lm_head, states: see `ICRMTrainer`.
        frozen: so many layers from below have no LoRA.
        settings: more of `ICRMConfig`.
    """
    common = {
        "output_dir": tempfile.gettempdir(),  # nothing is saved
        "per_device_train_batch_size": pairs,
        "max_length": None,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    options = {"train_dataset": data, "processing_class": Language().tokenizer}  # only its padding id matters here
    below = rf".*layers\.({'|'.join(map(str, range(frozen)))})\..*" if frozen else None
    options["peft_config"] = LoraConfig(task_type="SEQ_CLS", **LORA, exclude_modules=below)
    if kind == "bt":
        return RewardTrainer(base, RewardConfig(**common, **settings), **options)
    config = ICRMConfig(sft_weight=0.001 if "sft" in kind else 0.0, **common, **settings)
    return ICRMTrainer(base, config, lm_head=lm_head, states=states, **options)


def trainer_step(trainer: RewardTrainer, *, update: bool = True) -> Callable[[], torch.Tensor]:
    """Return a function that takes the trainer's next batch through forward and backward pass; it returns the loss.

    Args:
        trainer: what `make_trainer` returns.
        update: an optimiser step follows; else the model stays as it is.
    """
    batches = iter(trainer.get_train_dataloader())
    trainer.create_optimizer_and_scheduler(num_training_steps=1000)
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop that this one replaces
    trainer.model.train()

    def step() -> torch.Tensor:
        loss = trainer.training_step(trainer.model, next(batches))
        if update:
            trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        return loss

    return step


def step_seconds(step: Callable[[], None], warm: int, steps: int) -> float:
    """Return the median seconds of a step, without the first `warm` ones."""
    return float(np.median(take_turns({"step": step}, steps, warm=warm)["step"]))


def take_turns(contestants: dict[str, Callable[[], Any]], rounds: int, *, warm: int = 3) -> dict[str, np.ndarray]:
    """Let every contestant do its piece once a round; seconds of each, without the first `warm` rounds.

    What else the machine does then hits all of them alike, so a ratio is taken round by round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(warm + rounds):
        for name, function in contestants.items():
            wait()
            start = time.perf_counter()
            function()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values[warm:]) for name, values in seconds.items()}


def seconds_and_peak(function: Callable[[], Any]) -> tuple[float, float]:
    """Call a function once; return its seconds and its peak memory in MiB (see `hold`)."""
    held, start = hold(), time.perf_counter()
    function()
    return time.perf_counter() - start, peak(held)


def wait() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def quartiles(values: np.ndarray, digits: int = 3) -> list[float]:
    """Return median, lower and upper quartile, rounded."""
    return [round(float(q), digits) for q in np.quantile(values, (0.5, 0.25, 0.75))]


def in_own_process(function: Callable, *args: Any) -> Any:
    """Call a function of a script in a fresh process, so that its memory is its own.

    The processes are forked from one that has only imported the libraries: no start costs seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["icrm_lib.training.fit", "icrm_lib.figures"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()


def hold() -> float:
    """Start measuring peak memory; return what is held now, in MiB.

    Memory of the GPU's tensors where there is one, else resident memory of the process (where the system does not let
    the peak be set back, the peak so far stands for what is held).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    try:
        # Freed memory that the C library keeps is resident, and a step would live on it unseen.
        ctypes.CDLL(None).malloc_trim(0)
        CLEAR.write_text("5")
        return _status("VmRSS")
    except (OSError, AttributeError):
        return peak(0.0)


def give_back_at_once() -> None:
    """Let the C library return freed memory to the system at once, so that peaks do not depend on what it kept.

    It costs time, so a process that does it is for memory only. Without effect where there is no `mallopt`.
    """
    threshold, from_bytes = -3, 1 << 16  # M_MMAP_THRESHOLD: from 64 KiB on, a piece of memory is a mapping of its own
    getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(threshold, from_bytes)


def peak(held: float) -> float:
    """Return the peak memory since `hold`, less what was held then, in MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20 - held
    if STATUS.exists():
        return _status("VmHWM") - held
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - held


def _status(name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())[1]) / 2**10


def finish(name: str, args: argparse.Namespace, metrics: dict, folder: str = "bench") -> None:
    """Write `results/<folder>/<name>.json` and print it as one line."""
    path = records.write_record(name, folder, vars(args), metrics)
    print(json.dumps(records.read_json(path)))
