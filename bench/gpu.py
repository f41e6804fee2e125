"""Training steps at the sizes of real models on the GPU at hand: tokens a second, utilisation, peak memory.

    python bench/gpu.py [--shape gemma-2b llama3-8b] [--pairs 16 --length 1024 --steps 8]

The shapes are those of the models of that name, the weights random, so nothing is downloaded; LoRA of rank 32 on all
linear layers, weights and arithmetic in bfloat16, no gradient checkpointing. Rows have between three quarters of
`--length` and all of it, half of `--length` the prompt that both sides of a pair have. Batches are padded or, "shared",
without padding and with each prompt computed once, through FlexAttention on a GPU. `--pairs` is halved until every kind
of training fits; each kind has a process of its own. Utilisation is the floating point operations of a real step,
counted operator by operator (`torch.utils.flop_counter`; those on padding count, FlexAttention's do not), over the
step's time and the device's peak for dense bfloat16; tokens a second are those of the padded batch without its padding,
so a shared prompt counts twice.
`--shape tiny` runs anywhere. Prints one JSON record and writes it to `results/gpu/<device>.json`.
"""

import argparse
import re
from typing import Any

import numpy as np
import torch
import torch.nn.modules.linear_cross_entropy  # noqa: F401 (registers the operator below)
from common import (
    finish,
    hold,
    in_own_process,
    make_trainer,
    pairs_of,
    peak,
    step_seconds,
    trainer_step,
    with_one_prompt,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification, LlamaConfig, PreTrainedConfig, PreTrainedModel

from icrm_lib import runtime
from icrm_lib.plan.machine import measured_rates, model_config

SHAPES = {"gemma-2b": "google/gemma-2b-it", "llama3-8b": "meta-llama/Meta-Llama-3-8B-Instruct"}
PADDED = {"padding_free": False, "prefix_sharing": False}
SHARED = {"padding_free": True, "prefix_sharing": True}
KINDS = {  # name -> what is trained, and how its batches are laid out
    "bt": ("bt", {}),
    "icrm": ("icrm", PADDED),
    "icrm + sft": ("icrm + sft", PADDED),
    "icrm, shared": ("icrm", SHARED),
    "icrm + sft, shared": ("icrm + sft", SHARED),
}
# Dense bfloat16 TFLOP/s (NVIDIA's data sheets; where they give the figure with sparsity only, half of it). The first
# whose name is part of the device's counts; for others it is measured.
PEAK_TFLOPS = {"H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}
TEXT_TERM = torch.ops.torch_nn._linear_cross_entropy_batch_chunked


def text_term_flop(states: torch.Size, head: torch.Size, *_: Any, **__: Any) -> int:
    """Count what `token_nll` does in one operator that the counter does not know: logits, and the states' gradient."""
    return 2 * 2 * states[0] * head[0] * head[1]


def shape_config(shape: str) -> PreTrainedConfig:
    """Return the configuration of a name of `SHAPES`, or "tiny"."""
    if shape in SHAPES:
        return model_config(SHAPES[shape])
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(vocab_size=1000, tie_word_embeddings=True, **sizes)


def random_model(config: PreTrainedConfig, attention: str) -> tuple[PreTrainedModel, torch.Tensor | None]:
    """Return a reward model with random weights, and a random LM head where the embeddings are not tied."""
    torch.manual_seed(0)
    config.num_labels, config.pad_token_id = 1, 0
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    with torch.device(runtime.device()):
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype, attn_implementation=attention)
        if config.tie_word_embeddings:
            return model, None
        return model, torch.randn(config.vocab_size, config.hidden_size, dtype=dtype) * config.initializer_range


def measure(shape: str, kind: str, pairs: int, args: argparse.Namespace) -> dict[str, float] | None:
    """Return one kind's cost; None where it does not fit."""
    warm = 2
    config = shape_config(shape)
    count, prompt, rng = pairs * (warm + args.steps + 1), args.length // 2, np.random.default_rng(0)
    lengths = rng.integers(max(prompt + 2, 3 * args.length // 4), args.length + 1, (count, 2))
    data = with_one_prompt(pairs_of(np.full(count, prompt), lengths - prompt, config.vocab_size, rng))
    trained, layout = KINDS[kind]
    flexible = layout == SHARED and torch.cuda.is_available()
    try:
        model, lm_head = random_model(config, "flex_attention" if flexible else "sdpa")
        step = trainer_step(make_trainer(trained, model, data, pairs, lm_head=lm_head, **layout))
        held = hold()
        seconds = step_seconds(step, warm, args.steps)
        most = held + peak(held)
        with FlopCounterMode(display=False, custom_mapping={TEXT_TERM: text_term_flop}) as counter:
            step()
    except torch.OutOfMemoryError:
        return None
    lengths = np.array([[len(ids) for ids in data[f"{side}_ids"]] for side in ("chosen", "rejected")])
    batches = lengths.T.reshape(-1, 2 * pairs)
    return {
        "seconds": round(seconds, 4),
        "tokens_per_second": round(float(batches.sum(1).mean()) / seconds),
        "padding": round(1 - float(np.mean(batches.sum(1) / (2 * pairs * batches.max(1)))), 3),
        "tflop": counter.get_total_flops() / 1e12,
        "peak_gib": round(most / 1024, 2),
    }


def peak_tflops() -> tuple[float, str]:
    """Return the device's peak for dense bfloat16 in TFLOP/s and where the number is from."""
    for name, tflops in PEAK_TFLOPS.items():
        if torch.cuda.is_available() and name in runtime.device_name():
            return tflops, "data sheet"
    return in_own_process(measured_rates)[0], "a large matrix product"


def fitting(shape: str, args: argparse.Namespace) -> dict:
    """Measure all kinds at the largest batch that fits them all."""
    pairs = args.pairs
    while pairs:
        costs = {}
        for kind in reversed(list(KINDS)):  # the one that needs most memory first
            costs[kind] = in_own_process(measure, shape, kind, pairs, args)
            if costs[kind] is None:
                break
        else:
            return {"pairs": pairs, **{kind: costs[kind] for kind in KINDS}}
        pairs //= 2
    raise SystemExit(f"not even one pair of {args.length} tokens fits for {shape}; give a smaller --length")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", choices=(*SHAPES, "tiny"))
    for name, value in {"pairs": 16, "length": 1024, "steps": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    args.shape = args.shape or list(SHAPES)
    if not torch.cuda.is_available() and args.shape != ["tiny"]:
        raise SystemExit("no GPU is visible; --shape tiny runs without one")
    most, source = peak_tflops()
    metrics: dict = {"peak_tflops": round(most, 3), "peak_from": source}
    for shape in args.shape:
        metrics[shape] = fitting(shape, args)
        for kind in KINDS:
            cost = metrics[shape][kind]
            cost["utilisation"] = round(cost["tflop"] / cost["seconds"] / most, 3)
            cost["time_ratio"] = round(cost["seconds"] / metrics[shape]["bt"]["seconds"], 3)
    finish(re.sub(r"[^a-z0-9]+", "-", runtime.device_name().lower()).strip("-"), args, metrics, folder="gpu")


if __name__ == "__main__":
    main()
