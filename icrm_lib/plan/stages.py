"""The plan of a profile: its stages in running order, what each takes on a device, and what the numbers assume."""

from dataclasses import asdict
from typing import Any

from icrm_lib.methods import method_settings
from icrm_lib.plan import costs
from icrm_lib.plan.files import artefacts, expected_data, needed_files
from icrm_lib.plan.machine import (
    CONTEXT_GIB,
    DEVICES,
    MADE_HERE,
    READING,
    UNUSED,
    UTILISATION,
    Device,
    base_config,
    find_device,
    model_config,
)
from icrm_lib.profiles import Profile, load_profile
from icrm_lib.training import reads_generator, statistic_of

VLLM_ROWS = 64  # ours: vLLM draws about so many responses at once


def make_plan(name: str, *, device: str = "this", method: str = "icrm") -> dict[str, Any]:
    """Return the plan of a profile as plain values: device, data, stages, hours, files, artefacts, notes, assumed.

    Args:
        name: of the profile.
        device: see `machine.find_device`.
        method: a name of `methods.METHODS`.

    Raises:
        ValueError: unknown profile, device, method or model.
    """
    profile, chosen = load_profile(name), find_device(device)
    data = expected_data(profile)
    stages = find_stages(profile, method, chosen, data)
    return {
        "profile": profile.name,
        "method": method,
        "device": asdict(chosen),
        "data": data,
        "stages": stages,
        "hours": sum(stage["hours"] for stage in stages),
        "files": needed_files(profile, stages),
        "artefacts": artefacts(profile),
        "notes": notes(profile, method, chosen),
        "assumed": {"utilisation": UTILISATION, "reading": READING, "unused": UNUSED, "context_gib": CONTEXT_GIB},
    }


def find_stages(profile: Profile, method: str, device: Device, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the stages of a run, in running order.

    Args:
        profile: of the run.
        method: a name of `methods.METHODS`.
        device: what runs it.
        data: of `files.expected_data`.

    Returns:
        of each its name, `stage`; `model`, what is run or trained; `parameters`, `trainable`, `rows`, `row_tokens`:
        see `costs.Cost`; of the whole stage, every epoch counted, `tokens` and `flops`; `peak_gib` of the tensors in
        the worst batch; `hours` on the device; `fits`, as `Device.fits` says.

    Raises:
        ValueError: unknown method or model.
    """
    settings, generator, samples = method_settings(profile.reward_model, method), profile.generator, profile.samples
    base_name, base = profile.base_model.name, base_config(profile)
    name = generator.model or base_name
    asked = model_config(generator.model) if generator.model else base
    rows, length, longest = 2 * data["pairs"], max(2, round(data["tokens"] / 2)), profile.data.max_length
    sizes = {"length": length, "bf16": device.bf16}
    trained = {"length": length, "bf16": settings.in_bfloat16(device.bf16)}
    # A checkpoint that is only asked keeps its own type, a published one bfloat16.
    as_it_is = {"length": length, "bf16": device.bf16 or (generator.kind == "base" and name not in MADE_HERE)}
    found: list[dict[str, Any]] = []

    def add(stage: str, model: str, cost: costs.Cost, count: float, *, reads: float = 0.0) -> None:
        row = {"stage": stage, "model": model, **asdict(cost)}
        peak, flops = row.pop("peak_bytes") / 2**30, cost.flops * count
        hours, fits = device.hours(flops=flops, reads=reads), device.fits(peak)
        found.append(
            row | {"tokens": round(count * length), "flops": flops, "peak_gib": peak, "hours": hours, "fits": fits}
        )

    if base_name in MADE_HERE:
        batch = profile.base_model.batch_size
        cost = costs.base_model_cost(base, rows=batch, max_length=longest, **sizes)
        add("base model", base_name, cost, profile.base_model.steps * batch)
    if data["problems"]:
        cost = costs.sampling_cost(asked, rows=samples.n, max_length=longest, **as_it_is)
        drawn = data["problems"] * samples.n
        at_once = VLLM_ROWS if samples.engine == "vllm" else samples.n
        # Token by token: every weight is read for every token of the responses drawn at once.
        reads = drawn * length / at_once * cost.parameters * (2 if as_it_is["bf16"] else 4)
        add("sampling", name, cost, drawn, reads=reads)
    if settings.frozen_layers >= base.get_text_config().num_hidden_layers:
        raise ValueError(
            f"profile {profile.name}: frozen_layers is {settings.frozen_layers}, and {base_name} has "
            f"{base.get_text_config().num_hidden_layers} layers; leave one at least to train"
        )
    if settings.keeps_states:
        cost = costs.states_pass_cost(base, probabilities=profile.passes_once, max_length=longest, **trained)
        add("lower layers", base_name, cost, rows)
    # Where the same pass has answered, nobody is asked again.
    asks = reads_generator(settings) and not (profile.passes_once and statistic_of(settings) == "logprobs")
    if asks and generator.kind != "exact":
        if generator.kind == "fitted":
            cost = costs.generator_fit_cost(asked, generator, max_length=generator.max_length or longest, **sizes)
            add("generator fit", name, cost, rows * generator.epochs)
        cost = costs.generator_pass_cost(asked, generator, max_length=longest, **as_it_is)
        add("generator pass", name, cost, rows)
    cost = costs.reward_model_cost(base, settings, max_length=longest, **trained)
    add("reward model", base_name, cost, rows * settings.epochs)
    return found


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
    if settings.keeps_states:
        found.append(
            f"lower layers: states in {settings.frozen_states} go to disk; a row of several pairs is run once,"
        )
        found.append("here each is counted; FLOPs of the frozen layers stand in that stage alone")
    if settings.text_form == "grm_dpo" and settings.sft_weight > 0:
        found.append("the reference model's pass of grm_dpo is left out")
    if artefacts(profile):
        found.append("artefacts are used again where their settings are those of now")
    return found
