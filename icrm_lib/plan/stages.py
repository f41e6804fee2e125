"""The stages that one reward model needs, in running order, and what each takes on a device."""

from dataclasses import dataclass

from icrm_lib.methods import method_settings
from icrm_lib.plan import costs
from icrm_lib.plan.data import Amount
from icrm_lib.plan.devices import Device
from icrm_lib.plan.models import MADE_HERE, base_config, model_config
from icrm_lib.profiles import Profile
from icrm_lib.training import reads_generator

VLLM_ROWS = 64  # ours: vLLM draws about so many responses at once


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


def find_stages(profile: Profile, method: str, device: Device, data: Amount) -> list[Stage]:
    """Return the stages of a run.

    Args:
        profile: of the run.
        method: a name of `methods.METHODS`.
        device: what runs it.
        data: of `data.expected_data`.

    Raises:
        ValueError: unknown method or model.
    """
    settings, generator, samples = method_settings(profile.reward_model, method), profile.generator, profile.samples
    base_name, base = profile.base_model.name, base_config(profile)
    name = generator.model or base_name
    asked = model_config(generator.model) if generator.model else base
    rows, length, longest = 2 * data.pairs, max(2, round(data.tokens / 2)), profile.data.max_length
    sizes = {"length": length, "bf16": device.bf16}
    # A checkpoint that is only asked keeps its own type, a published one bfloat16.
    as_it_is = {"length": length, "bf16": device.bf16 or (generator.kind == "base" and name not in MADE_HERE)}
    found: list[Stage] = []

    def add(stage: str, model: str, cost: costs.Cost, count: float, *, reads: float = 0.0) -> None:
        peak, flops = cost.peak_bytes / 2**30, cost.flops * count
        found.append(
            Stage(
                stage=stage,
                model=model,
                parameters=cost.parameters,
                trainable=cost.trainable,
                rows=cost.rows,
                row_tokens=cost.row_tokens,
                tokens=round(count * length),
                flops=flops,
                peak_gib=peak,
                hours=device.hours(flops=flops, reads=reads),
                fits=device.fits(peak),
            )
        )

    if base_name in MADE_HERE:
        batch = profile.base_model.batch_size
        cost = costs.base_model_cost(base, rows=batch, max_length=longest, **sizes)
        add("base model", base_name, cost, profile.base_model.steps * batch)
    if data.problems:
        cost = costs.sampling_cost(asked, rows=samples.n, max_length=longest, **as_it_is)
        drawn = data.problems * samples.n
        at_once = VLLM_ROWS if samples.engine == "vllm" else samples.n
        # Token by token: every weight is read for every token of the responses drawn at once.
        reads = drawn * length / at_once * cost.parameters * (2 if as_it_is["bf16"] else 4)
        add("sampling", name, cost, drawn, reads=reads)
    if reads_generator(settings) and generator.kind != "exact":
        if generator.kind == "fitted":
            cost = costs.generator_fit_cost(asked, generator, max_length=generator.max_length or longest, **sizes)
            add("generator fit", name, cost, rows * generator.epochs)
        cost = costs.generator_pass_cost(asked, generator, max_length=longest, **as_it_is)
        add("generator pass", name, cost, rows)
    cost = costs.reward_model_cost(base, settings, max_length=longest, **sizes)
    add("reward model", base_name, cost, rows * settings.epochs)
    return found
