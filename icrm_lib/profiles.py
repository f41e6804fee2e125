"""Profiles decide the size of a run, nothing else: the same code runs for a laptop and for one GPU.

The frozen dataclasses are the schema, `profiles/<name>.yaml` holds the values. An option that does not exist is refused
where it is read, before anything runs.
"""

from dataclasses import asdict, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, Strict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from icrm_lib import runtime
from icrm_lib.runtime import nearest


def _number(value: Any) -> Any:
    if isinstance(value, bool | bytes):
        raise ValueError("neither a truth value nor bytes are a number")
    return value


# YAML reads 1e-5 as text and 1 as an integer: both are fine where a float is wanted; True and nan never are.
Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Rate = Annotated[Number, Field(gt=0)]
Weight = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Part = Annotated[Number, Field(ge=0, lt=1)]  # a share that is not all
Nucleus = Annotated[Number, Field(gt=0, le=1)]
Whole = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=0)]
Size = Annotated[int, Strict(), Field(ge=1)]
Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
_schema = dataclass(frozen=True, config=ConfigDict(extra="forbid"))


@_schema
class LanguageSettings:
    """Knobs of the testbed language (see `testbed.Language`); used when the data is "testbed"."""

    seed: Count = 0
    idiosyncratic_words: Count = 2
    persistence: Share = 0.75
    threshold: Whole = 3
    preference_noise: Weight = 1.0
    length_confounding: Share = 0.0
    subword: Flag = False
    held_out_verbs: Part = 0.0
    verbs_per_class: Size = 40
    coupling: Annotated[Number, Field(gt=-1, lt=1)] = 0.0
    alternative_probability: Share = 0.15
    linking_words: Flag = True


@_schema
class DataSettings:
    """Preference pairs and how they are tokenised and split (always by prompt)."""

    # "testbed", a JSONL/JSON/Parquet path, a hub id, or a name of `preferences.paper.RECIPES`
    preferences: Text = "testbed"
    ignore: Text = ""  # columns of a file, separated by commas, whose text may be left out (see `load_preferences`)
    train_pairs: Size = 400  # at most; testbed: exactly
    validation_pairs: Count = 200
    test_pairs: Count = 500
    max_length: Size = 1024  # tokens
    files: Text = ""  # recipes of `preferences.paper` only: folder with the downloaded files, instead of the hub
    stride: Size = 1  # recipes only: every n-th row of Unified-Feedback
    # of a pair, prompt counted twice; what `make plan` reckons with until the data are there
    expected_tokens: Count = 0


@_schema
class SampleSettings:
    """Responses to be drawn where the data are problems with answers (recipe "prm800k")."""

    n: Size = 4  # a problem
    temperature: Rate = 0.7
    top_p: Nucleus = 0.8
    max_new_tokens: Size = 1536
    engine: Literal["transformers", "vllm"] = "transformers"


@_schema
class BaseModelSettings:
    """The language model that everything starts from."""

    name: Text = "testbed"  # "testbed" and "scratch" are trained here; else a local directory or a hub id
    hidden_size: Size = 64
    layers: Size = 3
    heads: Size = 4
    vocabulary: Size = 2048  # "scratch" only: size of the byte-level BPE vocabulary
    steps: Size = 400
    batch_size: Size = 64  # responses a step
    learning_rate: Weight = 3e-3


@_schema
class GeneratorSettings:
    """The frozen generator whose next-token probabilities weight the consistency term."""

    # "fitted" (LoRA on the preference texts), "base" (as it is), "exact" (testbed only)
    kind: Literal["fitted", "base", "exact"] = "fitted"
    model: Text = ""  # where it starts; the base model when empty. Must share the base model's tokenizer
    lora_rank: Size = 8
    lora_alpha: Size = 16
    learning_rate: Weight = 1e-3
    epochs: Rate = 1.0
    batch_size: Size = 16  # pairs a forward pass
    accumulation: Size = 1
    max_length: Count = 0  # tokens of a response it is fitted on; 0 = data.max_length
    gradient_checkpointing: Flag = False
    save_steps: Count = 0  # a checkpoint every so many steps, to resume from; 0 = none
    temperature: Rate = 1.0  # of the distribution it is asked for
    top_p: Nucleus = 1.0  # likewise: probability outside the nucleus is 0
    engine: Literal["transformers", "vllm"] = "transformers"  # what asks it
    # of a cached log-probability; "float16" halves the file
    cache_type: Literal["float32", "float16"] = "float32"


# The generator's probability p of the later token, or what stands in its place: 1, 1 - p, p at pairs that are no
# neighbours, p shuffled in the response, exp(-entropy) before the token, the margin of its two most probable tokens.
Weighting = Literal["probability", "uniform", "inverted", "random_pairs", "shuffled", "entropy", "top1_margin"]


@_schema
class RewardModelSettings:
    """Reward-model training; `consistency_weight` is the paper's lambda."""

    lora_rank: Size = 8
    lora_alpha: Size = 16
    learning_rate: Weight = 2e-3
    epochs: Rate = 6.0
    batch_size: Size = 16  # pairs a forward pass
    accumulation: Size = 1
    warmup: Share = 0.03  # share of the steps
    consistency_weight: Part = 0.1
    sft_weight: Weight = 0.001
    # this and the following: see `training.ICRMConfig`
    loss: Literal["bradley_terry", "outcome", "process"] = "bradley_terry"
    pooling: Literal["last", "mean"] = "last"
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = 0.0
    positive_weight: Weight = 0.0
    text_form: Literal["mean_nll", "grm_sft", "grm_dpo_noref", "grm_dpo"] = "mean_nll"
    text_beta: Rate = 0.1
    weighting: Weighting = "probability"
    form: Literal["mutual_bce", "plain_log", "l1", "l2", "martingale", "td_lambda", "dense", "expected"] = "mutual_bce"
    td_lambda: Share = 0.9  # of the form "td_lambda"; 0 is the martingale, 1 the dense form
    siblings: Annotated[int, Strict(), Field(ge=1, le=8)] = 4  # next tokens of the form "expected"
    centering: Literal["response", "positions", "none"] = "response"
    center_rewards: Weight = 0.0  # TRL's `center_rewards_coefficient`; 0 = off
    margin: Flag = False  # subtract the rating difference in the Bradley-Terry term, where the data have ratings
    head: Literal["linear", "mlp"] = "linear"  # "mlp": dropout, linear to `mlp_size`, ReLU, linear (GRM's head)
    mlp_size: Size = 1024
    frozen_backbone: Flag = False  # train the head alone
    # so many layers from below carry no LoRA. What they give is computed once and kept in this type ("none": each time)
    frozen_layers: Count = 0
    frozen_states: Literal["float16", "float32", "none"] = "float16"
    # of the frozen weights and the arithmetic; "auto": bfloat16 on a GPU. Of use on a CPU with products of this type
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: Flag = False
    # no padding, and the prompt of a pair once: the same losses in less time (see `training.ICRMConfig`)
    padding_free: Flag | Literal["auto"] = "auto"
    prefix_sharing: Flag | Literal["auto"] = "auto"
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    quantization: Literal["", "4bit"] = ""  # "4bit": QLoRA, the frozen weights in four bits (needs bitsandbytes)
    save_steps: Count = 0  # a checkpoint every so many steps, to resume from; 0 = none

    def in_bfloat16(self, on_gpu: bool) -> bool:
        """Say whether training computes in bfloat16 on a GPU, or elsewhere."""
        return on_gpu if self.precision == "auto" else self.precision == "bfloat16"

    @property
    def keeps_states(self) -> bool:
        """Whether the lower layers run once, and training goes on from what they gave."""
        # The next tokens of the form "expected" stand in no row, so the layers are run for them all the same.
        return self.frozen_layers > 0 and self.frozen_states != "none" and self.form != "expected"


@_schema
class DownstreamSettings:
    """Best-of-N and policies: what is written, and who says what it is worth."""

    judge: Text = ""  # one-label reward model, a directory or hub id; on the testbed the gold score is the judge
    prompts: Count = 0  # of each split, at most; 0 = all
    max_new_tokens: Size = 128  # longest response


@_schema
class Profile:
    """Everything that decides the size of a run. `name` is the stem of the YAML file."""

    name: Text
    language: LanguageSettings = field(default_factory=LanguageSettings)
    data: DataSettings = field(default_factory=DataSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    base_model: BaseModelSettings = field(default_factory=BaseModelSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    reward_model: RewardModelSettings = field(default_factory=RewardModelSettings)
    downstream: DownstreamSettings = field(default_factory=DownstreamSettings)

    @property
    def passes_once(self) -> bool:
        """Whether the pass that keeps the lower layers' states gives the generator's probabilities, too."""
        generator = self.generator
        is_base = generator.kind == "base" and generator.model in ("", self.base_model.name)
        return self.reward_model.keeps_states and is_base and generator.engine == "transformers"

    def config(self) -> dict[str, Any]:
        """Return the profile as plain nested values, for records and cache keys."""
        return asdict(self)


def options(schema: type, name: str) -> tuple[str, ...]:
    """Return the values that an option of a schema can have, e.g. ("linear", "mlp") for `head`."""
    return get_args(get_type_hints(schema)[name])


def profiles_folder() -> Path:
    return runtime.project_root() / "profiles"


def known_profiles(folder: Path | None = None) -> list[str]:
    """Return the names of the profiles in a folder, `profiles/` when None, sorted."""
    return sorted(path.stem for path in (folder or profiles_folder()).glob("*.yaml"))


def check_profile(name: str, folder: Path | None = None) -> None:
    """Raise ValueError, naming the nearest one, when a folder, `profiles/` when None, holds no such profile."""
    known = known_profiles(folder)
    if not known:
        raise ValueError(f"no *.yaml in {folder or profiles_folder()}; start from inside a complete checkout")
    if name not in known:
        raise ValueError(f"unknown profile {name!r}; {nearest(name, known)}")


def load_profile(name: str) -> Profile:
    """Load `profiles/<name>.yaml`.

    Raises:
        ValueError: unknown profile, unknown key or option, or a value of another type; the message names the nearest.
    """
    check_profile(name)
    path = profiles_folder() / f"{name}.yaml"
    values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path.name}: expected a mapping of settings, got {values!r}")
    if "name" in values:
        raise ValueError(f"{path.name}: a profile is named after its file; remove the key 'name'")
    return build(Profile, {"name": name, **values}, path.name)


def build(schema: type, values: dict[str, Any], where: str) -> Any:
    """Build a (nested) settings dataclass from plain values, refusing what the schema does not know.

    Args:
        schema: one of the dataclasses above.
        values: mapping of field names to values; missing fields keep their defaults.
        where: what to call the source in an error, e.g. "smoke.yaml".

    Raises:
        ValueError: an unknown or missing key, an unknown option, or a value of another type.
    """
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise ValueError(_first_fault(schema, error, where)) from error


BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def _first_fault(schema: type, error: ValidationError, where: str) -> str:
    fault = error.errors(include_url=False)[0]
    if not fault["loc"]:
        return f"{where}: expected a mapping of settings, got {fault['input']!r}"
    *sections, key = fault["loc"]
    for section in sections:
        schema, where = get_type_hints(schema)[section], f"{where}: {section}"
    known, value = get_type_hints(schema, include_extras=True), fault["input"]
    if key not in known:
        return f"{where}: unknown key {key!r}; {nearest(str(key), list(known))}"
    if fault["type"] == "missing":
        return f"{where}: the key {key!r} is missing; add it"
    if fault["type"] == "literal_error":
        return f"{where}: {key}: unknown value {value!r}; {nearest(str(value), list(get_args(known[key])))}"
    if fault["type"] in BOUNDS:
        bound = next(iter(fault["ctx"].values()))
        return f"{where}: {key}: expected a number {BOUNDS[fault['type']]} {bound:g}, got {value!r}; correct the value"
    kind = "a mapping of settings" if is_dataclass(known[key]) else get_args(known[key])[0].__name__
    return f"{where}: {key}: expected {kind}, got {value!r}; correct the value"
