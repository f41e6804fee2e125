"""What runs, and what is run: cards and the machine at hand, measured; configurations of models, without weights."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.benchmark import Timer
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from icrm_lib import runtime
from icrm_lib.language_model.loading import NO_CODE
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language
from icrm_lib.tokenization import prepare_tokenizer

# Ours. Of a device's products a second, training and passes reach about a third; of the bytes it reads a second,
# token-by-token sampling about a third.
UTILISATION, READING = 0.35, 0.3
# Ours: what the allocator leaves unused, and what the process holds beside tensors.
UNUSED, CONTEXT_GIB = 0.1, 0.6


@dataclass(frozen=True)
class Device:
    """What runs a stage.

    Attributes:
        name: the product's.
        memory_gib: what PyTorch can use of it.
        tflops: products it could do a second at best, dense, in the type that a stage computes in.
        gb_s: memory it could read a second at best, in 10^9 bytes.
        bf16: whether stages compute in bfloat16; else in float32.
        source: where the three numbers come from.
    """

    name: str
    memory_gib: float
    tflops: float
    gb_s: float
    bf16: bool
    source: str

    def fits(self, peak_gib: float) -> str:
        """Say whether a peak has room: "yes", "barely" (the allocator must waste nothing) or "no"."""
        if peak_gib * (1 + UNUSED) + CONTEXT_GIB <= self.memory_gib:
            return "yes"
        return "barely" if peak_gib + CONTEXT_GIB <= self.memory_gib else "no"

    def hours(self, *, flops: float = 0.0, reads: float = 0.0) -> float:
        """Return how long products and reads of so many bytes take, the longer of the two."""
        seconds = max(flops / (self.tflops * 1e12 * UTILISATION), reads / (self.gb_s * 1e9 * READING))
        return seconds / 3600


DEVICES = {
    "24": Device("NVIDIA GeForce RTX 4090", 23.6, 165.2, 1008, True, "NVIDIA's Ada architecture white paper"),
    "48": Device("NVIDIA L40S", 44.4, 362.0, 864, True, "NVIDIA's L40S data sheet"),
    "80": Device("NVIDIA A100 80GB SXM", 79.1, 312.0, 2039, True, "NVIDIA's A100 data sheet"),
    "141": Device("NVIDIA H200 SXM", 139.7, 989.0, 4800, True, "NVIDIA's H200 data sheet"),
}


def find_device(name: str) -> Device:
    """Return a card by its memory in GB ("24", "48", "80", "141"), or for "this" what this machine has, measured.

    Raises:
        ValueError: neither; the message names the choices.
    """
    if name in DEVICES:
        return DEVICES[name]
    if name != "this":
        raise ValueError(f"unknown device {name!r}; choose {', '.join(DEVICES)} (a card's memory in GB) or this")
    kind = runtime.device()
    if kind == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tflops, gb_s = measured_rates()
    return Device(runtime.device_name(), memory / 2**30, tflops, gb_s, kind == "cuda", "measured just now")


def measured_rates() -> tuple[float, float]:
    """Return what this machine does: best of a few square matrix products, in TFLOP/s, and of a few copies, in GB/s."""
    kind = runtime.device()
    size, dtype = (8192, torch.bfloat16) if kind == "cuda" else (2048, torch.float32)
    left, right, copy = (torch.ones(size, size, device=kind, dtype=dtype) for _ in range(3))

    def seconds(statement: str) -> float:
        names = {"torch": torch, "left": left, "right": right, "copy": copy}
        timer = Timer(statement, globals=names, num_threads=torch.get_num_threads())
        return min(timer.timeit(1).median for _ in range(4))

    products, bytes_moved = 2 * size**3, 2 * left.nbytes
    return products / seconds("torch.mm(left, right, out=copy)") / 1e12, bytes_moved / seconds("copy.copy_(left)") / 1e9


MADE_HERE = ("testbed", "scratch")
# The architecture part of the public config.json of each model, for machines that have not downloaded it yet.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "google/gemma-2b-it": ("gemma", {
        "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000, "tie_word_embeddings": True,
    }),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    }),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    }),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    }),
    # made by `make real` from a package
    "smollm2": ("llama", {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    }),
}  # fmt: skip


def model_config(name: str) -> PreTrainedConfig:
    """Return a model's configuration: a directory's, the cache's, that of `ARCHITECTURES`, or the hub's.

    Raises:
        ValueError: it is nowhere; the message says what to do.
    """
    folder = runtime.resolve_path(name)
    path = str(folder) if folder.is_dir() else name
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, **NO_CODE)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ValueError(f"no model in the directory {name!r}: {error}; name one with a config.json") from error
    if name in ARCHITECTURES:
        kind, values = ARCHITECTURES[name]
        return AutoConfig.for_model(kind, **values)
    try:
        return AutoConfig.from_pretrained(name, **NO_CODE)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no configuration of {name!r} on this machine, and the hub did not give it; check the name, run "
            f"`hf download {name} config.json` where there is a network, or add it to ARCHITECTURES in "
            "icrm_lib/plan/machine.py"
        ) from error


def base_config(profile: Profile) -> PreTrainedConfig:
    """Return the base model's configuration; for "testbed" and "scratch" as `scratch.small_llama` makes it."""
    settings, vocabulary = profile.base_model, profile.base_model.vocabulary
    if settings.name not in MADE_HERE:
        return model_config(settings.name)
    if settings.name == "testbed":
        vocabulary = len(prepare_tokenizer(Language(**asdict(profile.language)).tokenizer))
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=profile.data.max_length,
        tie_word_embeddings=True,
    )
