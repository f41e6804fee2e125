"""What a profile will take, before anything starts: parameters, tokens, FLOPs, memory, hours, files.

    python -m icrm_lib.plan.stages --profile gemma-2b-40k                 on this machine
    python -m icrm_lib.plan.stages --profile gemma-2b-40k --device 24     on a card of 24 GB (48, 80, 141 likewise)
    python -m icrm_lib.plan.stages --profile lab --method bt --json       another method, as one JSON object

`make plan` calls this. Nothing is downloaded or written. The hub is asked for nothing but the size of what is missing,
and only without HF_HUB_OFFLINE. Parameters, FLOPs and memory come from `simulation`; tokens are expected ones, so hours
are a rough guess.

Exit status: 0 planned; 2 the command line or the profile names something that does not exist.
"""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icrm_lib import runtime

runtime.quiet()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from huggingface_hub import CacheNotFound, HfApi, constants, scan_cache_dir  # noqa: E402
from transformers import AutoConfig, LlamaConfig, PreTrainedConfig  # noqa: E402

from icrm_lib.language_model.loading import NO_CODE  # noqa: E402
from icrm_lib.methods import method_settings  # noqa: E402
from icrm_lib.plan import simulation  # noqa: E402
from icrm_lib.preferences import preference_rows, tokenize_pairs  # noqa: E402
from icrm_lib.preferences.paper import PRM800K, RECIPES, SHARES, SKYWORK, UNIFIED_FEEDBACK  # noqa: E402
from icrm_lib.profiles import Profile, load_profile  # noqa: E402
from icrm_lib.testbed import Language  # noqa: E402
from icrm_lib.tokenization import prepare_tokenizer  # noqa: E402
from icrm_lib.training.config import reads_generator  # noqa: E402

MADE_HERE = ("testbed", "scratch")
SAMPLED_PAIRS = 64  # of the testbed, to learn how long its pairs are
# Ours. Of a device's products a second, training and passes reach about a third; of the bytes it reads a second,
# token-by-token sampling about a third; vLLM draws about so many responses at once.
UTILISATION, READING, VLLM_ROWS = 0.35, 0.3, 64
# Ours: what the allocator leaves unused, and what the process holds beside tensors.
UNUSED, CONTEXT_GIB = 0.1, 0.6

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
}  # fmt: skip
# Rows with different ratings, pairs, and problems (Lightman et al. 2023), as published; all about.
PUBLISHED = {UNIFIED_FEEDBACK.name: 848_000, SKYWORK.name: 77_000, PRM800K.name: 12_000}


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


DEVICES = {
    "24": Device("NVIDIA GeForce RTX 4090", 23.6, 165.2, 1008, True, "NVIDIA's Ada architecture white paper"),
    "48": Device("NVIDIA L40S", 44.4, 362.0, 864, True, "NVIDIA's L40S data sheet"),
    "80": Device("NVIDIA A100 80GB SXM", 79.1, 312.0, 2039, True, "NVIDIA's A100 data sheet"),
    "141": Device("NVIDIA H200 SXM", 139.7, 989.0, 4800, True, "NVIDIA's H200 data sheet"),
}


@dataclass(frozen=True)
class Stage:
    """One line of a plan.

    Attributes:
        stage: its name.
        model: what is run or trained.
        parameters, trainable: numbers of weights.
        rows: sequences in the worst batch.
        row_tokens: tokens of each of them.
        tokens: tokens of the whole stage, every epoch counted.
        flops: of the whole stage.
        peak_gib: memory of the tensors in the worst batch.
        hours: on the device of the plan.
        fits: "yes", "barely" (without room for the allocator) or "no".
    """

    stage: str
    model: str
    parameters: int
    trainable: int
    rows: int
    row_tokens: int
    tokens: int
    flops: float
    peak_gib: float
    hours: float
    fits: str


# What is known of device, data and models ------------------------------------------------------------------


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
    tflops, gb_s = _measured(kind)
    return Device(runtime.device_name(), memory / 2**30, tflops, gb_s, kind == "cuda", "measured just now")


def _measured(kind: str) -> tuple[float, float]:
    """Best of a few square matrix products, in TFLOP/s, and of a few copies, in GB/s."""
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
            f"`hf download {name} config.json` where there is a network, or add it to ARCHITECTURES in icrm_lib.plan"
        ) from error


def expected_data(profile: Profile) -> dict[str, Any]:
    """Return how much there is to train on.

    Returns:
        `source`; `pairs`; `tokens` of a pair, prompt counted twice; `problems`, to sample solutions for (0 without);
        `pairs_are` and `tokens_are`, how well they are known; for the testbed also `tokenizer`.
    """
    data = profile.data
    result: dict[str, Any] = {"source": data.preferences, "problems": 0}
    if data.preferences == "testbed":
        tokens, tokenizer = _testbed_tokens(profile)
        result |= {"pairs_are": "exactly", "tokens_are": f"mean of {SAMPLED_PAIRS} pairs"}
        return result | {"pairs": data.train_pairs, "tokens": tokens, "tokenizer": tokenizer}
    pairs = data.train_pairs
    if data.preferences == "prm800k":
        result["problems"] = PUBLISHED[PRM800K.name]
        pairs = round(result["problems"] * SHARES[0]) * (profile.samples.n // 2)
    elif data.preferences in RECIPES:
        pairs = PUBLISHED[UNIFIED_FEEDBACK.name] // data.stride
        if SKYWORK in RECIPES[data.preferences]:
            pairs += PUBLISHED[SKYWORK.name] * 9 // 10
    result |= {"pairs": min(pairs, data.train_pairs), "tokens": data.expected_tokens or 2 * data.max_length}
    result["pairs_are"] = "about" if data.preferences in RECIPES else "at most"
    result["tokens_are"] = "as the profile expects" if data.expected_tokens else "at most; set data: expected_tokens"
    return result


def _testbed_tokens(profile: Profile) -> tuple[int, Any]:
    language = Language(**asdict(profile.language))
    rows = language.preference_pairs(SAMPLED_PAIRS, np.random.default_rng(0))
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    tokenizer = prepare_tokenizer(language.tokenizer)
    pairs = tokenize_pairs(preference_rows(Dataset.from_list(rows))[0], tokenizer, max_length=profile.data.max_length)[
        0
    ]
    tokens = sum(len(ids) for side in ("chosen_ids", "rejected_ids") for ids in pairs[side])
    return round(tokens / len(pairs)), tokenizer


def base_config(profile: Profile, data: dict[str, Any]) -> PreTrainedConfig:
    """Return the base model's configuration; for "testbed" and "scratch" as `base_model.small_llama` makes it."""
    settings = profile.base_model
    if settings.name not in MADE_HERE:
        return model_config(settings.name)
    return LlamaConfig(
        vocab_size=len(data["tokenizer"]) if settings.name == "testbed" else settings.vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=profile.data.max_length,
        tie_word_embeddings=True,
    )


# The stages ------------------------------------------------------------------------------------------------


def stages(profile: Profile, method: str, device: Device, data: dict[str, Any]) -> list[Stage]:
    """Return the stages that one reward model of a method needs, in running order.

    Args:
        profile: of the run.
        method: a name of `methods.METHODS`.
        device: what runs it.
        data: of `expected_data`.

    Raises:
        ValueError: unknown method or model.
    """
    settings, generator, samples = method_settings(profile.reward_model, method), profile.generator, profile.samples
    base_name, base = profile.base_model.name, base_config(profile, data)
    name = generator.model or base_name
    asked = model_config(generator.model) if generator.model else base
    rows, length, longest = 2 * data["pairs"], max(2, round(data["tokens"] / 2)), profile.data.max_length
    sizes = {"length": length, "bf16": device.bf16}
    # A checkpoint that is only asked keeps its own type, a published one bfloat16.
    as_it_is = {"length": length, "bf16": device.bf16 or (generator.kind == "base" and name not in MADE_HERE)}
    found: list[Stage] = []
    if base_name in MADE_HERE:
        batch = profile.base_model.batch_size
        cost = simulation.base_model_cost(base, rows=batch, max_length=longest, **sizes)
        found.append(_stage("base model", base_name, cost, profile.base_model.steps * batch, length, device))
    if data["problems"]:
        cost = simulation.sampling_cost(asked, rows=samples.n, max_length=longest, **as_it_is)
        drawn = data["problems"] * samples.n
        at_once = VLLM_ROWS if samples.engine == "vllm" else samples.n
        # Token by token: every weight is read for every token of the responses drawn at once.
        reads = drawn * length / at_once * cost.parameters * (2 if as_it_is["bf16"] else 4)
        hours = reads / (device.gb_s * 1e9 * READING) / 3600
        found.append(_stage("sampling", name, cost, drawn, length, device, at_least=hours))
    if reads_generator(settings) and generator.kind != "exact":
        if generator.kind == "fitted":
            cost = simulation.generator_fit_cost(asked, generator, max_length=generator.max_length or longest, **sizes)
            found.append(_stage("generator fit", name, cost, rows * generator.epochs, length, device))
        cost = simulation.generator_pass_cost(asked, generator, max_length=longest, **as_it_is)
        found.append(_stage("generator pass", name, cost, rows, length, device))
    cost = simulation.reward_model_cost(base, settings, max_length=longest, **sizes)
    found.append(_stage("reward model", base_name, cost, rows * settings.epochs, length, device))
    return found


def _stage(
    stage: str, model: str, cost: simulation.Cost, rows: float, length: int, device: Device, *, at_least: float = 0.0
) -> Stage:
    hours = max(cost.flops * rows / (device.tflops * 1e12 * UTILISATION) / 3600, at_least)
    peak = cost.peak_bytes / 2**30
    return Stage(
        stage=stage,
        model=model,
        parameters=cost.parameters,
        trainable=cost.trainable,
        rows=cost.rows,
        row_tokens=cost.row_tokens,
        tokens=round(rows * length),
        flops=cost.flops * rows,
        peak_gib=peak,
        hours=hours,
        fits=fits(peak, device),
    )


def fits(peak_gib: float, device: Device) -> str:
    """Say whether a peak has room on a device: "yes", "barely" (the allocator must waste nothing) or "no"."""
    if peak_gib * (1 + UNUSED) + CONTEXT_GIB <= device.memory_gib:
        return "yes"
    return "barely" if peak_gib + CONTEXT_GIB <= device.memory_gib else "no"


# Files -----------------------------------------------------------------------------------------------------


def needed_files(profile: Profile, found: list[Stage]) -> list[dict[str, Any]]:
    """Return the models and data sets of a run.

    Returns:
        of each `name`; `kind` ("model" or "dataset"); `here`, whether it need not be downloaded; `bytes`, None where
        unknown; `exact`, False where these are two a parameter.
    """
    published: dict[str, int] = {}
    for stage in found:  # what is trained is made here, and a reward model leaves the LM head out
        published[stage.model] = max(stage.parameters - stage.trainable, published.get(stage.model, 0))
    files = [_file(name, "model", 2 * count) for name, count in published.items() if name not in MADE_HERE]
    source = profile.data.preferences
    for origin in RECIPES.get(source, ()):
        files.append(_data_file(origin.name, profile.data.files, hub=not origin.url))
    if source != "testbed" and source not in RECIPES:
        files.append(_data_file(source, "", hub=True))
    return files


def _data_file(name: str, folder: str, *, hub: bool) -> dict[str, Any]:
    path = runtime.resolve_path(folder or name)
    if path.exists():
        return {"name": folder or name, "kind": "dataset", "here": True, "bytes": None, "exact": False}
    if hub:
        return _file(name, "dataset", None)
    return {"name": name, "kind": "dataset", "here": False, "bytes": None, "exact": False}


def _file(name: str, kind: str, about: int | None) -> dict[str, Any]:
    entry = {"name": name, "kind": kind, "here": True, "bytes": None, "exact": False}
    if runtime.resolve_path(name).exists():
        return entry
    try:
        repositories = [r for r in scan_cache_dir().repos if (r.repo_id, r.repo_type) == (name, kind)]
    except CacheNotFound:
        repositories = []
    ends = (".safetensors",) if kind == "model" else (".parquet", ".jsonl", ".json", ".arrow", ".gz")
    names = [file.file_name for r in repositories for revision in r.revisions for file in revision.files]
    if any(file.endswith(ends) for file in names):
        return entry | {"bytes": repositories[0].size_on_disk, "exact": True}
    size = None if constants.HF_HUB_OFFLINE else _published_size(name, kind)
    return entry | {"here": False, "bytes": size or about, "exact": size is not None}


def _published_size(name: str, kind: str) -> int | None:
    """Bytes of a repository's weights or tables, as the hub says; None when it cannot be asked."""
    try:
        info = HfApi().repo_info(name, repo_type=kind, files_metadata=True, timeout=10)
    except Exception:  # whatever keeps the hub from answering, the plan does without
        return None
    wanted = [file for file in info.siblings if kind == "dataset" or file.rfilename.endswith(".safetensors")]
    return sum(file.size or 0 for file in wanted) or None


def artefacts(profile: Profile) -> dict[str, int]:
    """Return how many artefacts of each noun `runs/<profile>/artefacts` holds, whatever settings made them."""
    folder = runtime.project_root() / "runs" / profile.name / "artefacts"
    names = [path.name for path in folder.glob("*-*")] if folder.is_dir() else []
    return dict(sorted(Counter(Path(name).stem.rpartition("-")[0] for name in names).items()))


# The whole plan --------------------------------------------------------------------------------------------


def make_plan(name: str, *, device: str = "this", method: str = "icrm") -> dict[str, Any]:
    """Return the plan of a profile as plain values.

    Args:
        name: of the profile.
        device: see `find_device`.
        method: a name of `methods.METHODS`.

    Raises:
        ValueError: unknown profile, device, method or model.
    """
    profile, chosen = load_profile(name), find_device(device)
    data = expected_data(profile)
    found = stages(profile, method, chosen, data)
    return {
        "profile": profile.name,
        "method": method,
        "device": asdict(chosen),
        "data": {key: value for key, value in data.items() if key != "tokenizer"},
        "stages": [asdict(stage) for stage in found],
        "hours": sum(stage.hours for stage in found),
        "files": needed_files(profile, found),
        "artefacts": artefacts(profile),
        "notes": notes(profile, method, chosen),
        "assumed": {"utilisation": UTILISATION, "reading": READING, "unused": UNUSED, "context_gib": CONTEXT_GIB},
    }


def notes(profile: Profile, method: str, device: Device) -> list[str]:
    """Return what the numbers of a plan leave out or assume, one sentence each."""
    settings = method_settings(profile.reward_model, method)
    found = [
        f"time: {UTILISATION:.0%} of the peak rate is reached (ours); the expected tokens, no padding",
        "memory: the tensors of the worst batch, all its rows at full length (batch: rows x tokens)",
        f"fits: with {UNUSED:.0%} for the allocator and {CONTEXT_GIB} GiB for the process (ours)",
    ]
    if device.bf16 and profile.base_model.name not in MADE_HERE:
        found.append("types: weights in bfloat16; adapter, head and optimiser in float32")
    if not device.bf16:
        found.append("a CPU's C library keeps up to five times a small model's tensors; MALLOC_MMAP_THRESHOLD_=65536")
        found.append("in the environment makes it give back what is freed")
        found.append(f"for a graphics card add --device {', '.join(DEVICES)} (its memory in GB)")
    if profile.data.preferences == "prm800k" and profile.samples.engine != "vllm":
        reading = f"{READING:.0%} of the memory's rate (ours)"
        found.append(f"sampling: all weights are read for every token of {profile.samples.n} responses, at {reading};")
        found.append("vLLM (samples: engine) draws for many problems at once")
    if settings.quantization:
        found.append(f"quantization {settings.quantization!r} is not simulated: memory is that of 16 bits")
    if reads_generator(settings) and profile.generator.engine == "vllm":
        found.append("generator pass: vLLM takes nine tenths of a card's memory, whatever it needs")
    if settings.text_form == "grm_dpo" and settings.sft_weight > 0:
        found.append("the reference model's pass of grm_dpo is left out")
    if artefacts(profile):
        found.append("artefacts are used again where their settings are those of now")
    return found


def describe(plan: dict[str, Any]) -> str:
    """Return a plan as text for a terminal."""
    device, data = plan["device"], plan["data"]
    kind = "bfloat16, dense" if device["bf16"] else "float32"
    amount = f"{data['pairs_are']} {data['pairs']:,} pairs to train on"
    if data["problems"]:
        amount = f"about {data['problems']:,} problems, {amount}"
    about = [
        ("profile", f"{plan['profile']}, method {plan['method']}"),
        ("device", f"{device['name']}: {device['memory_gib']:.1f} GiB, {device['tflops']:.3g} TFLOP/s in {kind}"),
        ("", f"({device['source']})"),
        ("data", f"{data['source']}: {amount}"),
        ("", f"{data['tokens']:,} tokens a pair, its prompt counted twice ({data['tokens_are']})"),
    ]
    lines = [f"{label:<9}{text}" for label, text in about]
    lines += ["", *_table(plan["stages"]), ""]
    total = f"{_hours(plan['hours'])} in all"
    short = [stage["stage"] for stage in plan["stages"] if stage["fits"] != "yes"]
    where = f"; memory is short for {' and '.join(short)}" if short else "; everything fits"
    lines += [f"{total}{where} ({device['memory_gib']:.1f} GiB)", ""]
    kept = ", ".join(f"{count} {noun}" for noun, count in plan["artefacts"].items()) or "nothing yet"
    files = [*map(_file_line, plan["files"]), f"runs/{plan['profile']}/artefacts: {kept}"]
    for label, texts in (("files", files), ("notes", plan["notes"])):
        lines += [f"{'' if i else label:<9}{text}" for i, text in enumerate(texts)]
    return "\n".join(lines)


def _table(found: list[dict[str, Any]]) -> list[str]:
    head = ("stage", "model", "parameters", "trained", "share", "tokens", "FLOPs", "batch", "peak", "time", "fits")
    rows = [head]
    for stage in found:
        share = f"{stage['trainable'] / stage['parameters']:.2%}" if stage["trainable"] else "-"
        rows.append(
            (
                stage["stage"],
                stage["model"].rpartition("/")[2],
                _count(stage["parameters"]),
                _count(stage["trainable"]) if stage["trainable"] else "-",
                share,
                _count(stage["tokens"]),
                f"{stage['flops']:.1e}",
                f"{stage['rows']}x{stage['row_tokens']}",
                _memory(stage["peak_gib"] * 2**30),
                _hours(stage["hours"]),
                stage["fits"],
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    left = (0, 1, len(head) - 1)
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _count(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _memory(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def _file_line(file: dict[str, Any]) -> str:
    size = f", {'' if file['exact'] else 'about '}{_memory(file['bytes'])}" if file["bytes"] else ""
    return f"{file['name']}: {'here' if file['here'] else 'to download'}{size}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's text. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m icrm_lib.plan.stages", description="Say what a profile will take.")
    parser.add_argument("--profile", default="smoke", help="a file of profiles/ without its ending (smoke)")
    choices = f"{', '.join(DEVICES)} (memory of a card in GB) or this (measured; the default)"
    parser.add_argument("--device", default="this", help=choices)
    parser.add_argument("--method", default="icrm", help="a method of icrm_lib/training/fit.py (icrm)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options = parser.parse_args(arguments)
    try:
        plan = make_plan(options.profile, device=options.device, method=options.method)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(plan) if options.json else describe(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
