"""The whole plan of a profile, as plain values."""

from dataclasses import asdict
from typing import Any

from icrm_lib.methods import method_settings
from icrm_lib.plan.data import expected_data
from icrm_lib.plan.devices import CONTEXT_GIB, DEVICES, READING, UNUSED, UTILISATION, Device, find_device
from icrm_lib.plan.files import artefacts, needed_files
from icrm_lib.plan.models import MADE_HERE
from icrm_lib.plan.stages import find_stages
from icrm_lib.profiles import Profile, load_profile
from icrm_lib.training import reads_generator


def make_plan(name: str, *, device: str = "this", method: str = "icrm") -> dict[str, Any]:
    """Return the plan of a profile: device, data, stages, hours, files, artefacts, notes, what is assumed.

    Args:
        name: of the profile.
        device: see `devices.find_device`.
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
        "data": asdict(data),
        "stages": [asdict(stage) for stage in stages],
        "hours": sum(stage.hours for stage in stages),
        "files": needed_files(profile, stages),
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
