"""What runs a stage: cards by their memory, or the machine at hand, measured; how long it takes, whether it fits."""

import os
import time
from dataclasses import dataclass

import torch

from icrm_lib import runtime

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
    left, right = (torch.ones(size, size, device=kind, dtype=dtype) for _ in range(2))
    copy = torch.empty_like(left)
    seconds = []
    for work in (lambda: torch.mm(left, right, out=copy), lambda: copy.copy_(left)):
        best = float("inf")
        for _ in range(4):
            start = time.perf_counter()
            work()
            if kind == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        seconds.append(best)
    return 2 * size**3 / seconds[0] / 1e12, 2 * left.nbytes / seconds[1] / 1e9
