"""Profiles decide the size of a run, nothing else: the same code runs for a laptop and for one GPU.

The frozen dataclasses are the schema, `profiles/<name>.yaml` holds the values.
"""

import difflib
import math
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from icrm_lib import runtime


@dataclass(frozen=True)
class LanguageSettings:
    """Knobs of the testbed language (see `testbed.Language`); used when the data is "testbed"."""

    seed: int = 0
    idiosyncratic_words: int = 2
    persistence: float = 0.75
    threshold: int = 3
    preference_noise: float = 1.0
    length_confounding: float = 0.0
    subword: bool = False
    held_out_verbs: float = 0.0


@dataclass(frozen=True)
class DataSettings:
    """Preference pairs and how they are tokenised and split (always by prompt)."""

    preferences: str = "testbed"  # "testbed", a JSONL/JSON/Parquet path, a hub id, or a name of `paper.RECIPES`
    train_pairs: int = 400  # at most; testbed: exactly
    validation_pairs: int = 200
    test_pairs: int = 500
    max_length: int = 1024  # tokens
    files: str = ""  # recipes of `preferences.paper` only: folder with the downloaded files, instead of the hub
    stride: int = 1  # recipes only: every n-th row of Unified-Feedback
    expected_tokens: int = 0  # of a pair, prompt counted twice; what `make plan` reckons with until the data are there


@dataclass(frozen=True)
class SampleSettings:
    """Responses to be drawn where the data are problems with answers (recipe "prm800k")."""

    n: int = 4  # a problem
    temperature: float = 0.7
    top_p: float = 0.8
    max_new_tokens: int = 1536
    engine: str = "transformers"  # or "vllm"


@dataclass(frozen=True)
class BaseModelSettings:
    """The language model that everything starts from."""

    name: str = "testbed"  # "testbed" and "scratch" are trained here; else a local directory or a hub id
    hidden_size: int = 64
    layers: int = 3
    heads: int = 4
    vocabulary: int = 2048  # "scratch" only: size of the byte-level BPE vocabulary
    steps: int = 400
    batch_size: int = 64  # responses a step
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class GeneratorSettings:
    """The frozen generator whose next-token probabilities weight the consistency term."""

    kind: str = "fitted"  # "fitted" (LoRA on the preference texts), "base" (as it is), "exact" (testbed only)
    model: str = ""  # where it starts; the base model when empty. Must share the base model's tokenizer
    lora_rank: int = 8
    lora_alpha: int = 16
    learning_rate: float = 1e-3
    epochs: float = 1.0
    batch_size: int = 16  # pairs a forward pass
    accumulation: int = 1
    max_length: int = 0  # tokens of a response it is fitted on; 0 = data.max_length
    gradient_checkpointing: bool = False
    save_steps: int = 0  # a checkpoint every so many steps, to resume from; 0 = none
    temperature: float = 1.0  # of the distribution it is asked for
    top_p: float = 1.0  # likewise: probability outside the nucleus is 0
    engine: str = "transformers"  # or "vllm": what asks it
    cache_type: str = "float32"  # of a cached log-probability; "float16" halves the file


@dataclass(frozen=True)
class RewardModelSettings:
    """Reward-model training; `consistency_weight` is the paper's lambda."""

    lora_rank: int = 8
    lora_alpha: int = 16
    learning_rate: float = 2e-3
    epochs: float = 6.0
    batch_size: int = 16  # pairs a forward pass
    accumulation: int = 1
    warmup: float = 0.03  # share of the steps
    consistency_weight: float = 0.1
    sft_weight: float = 0.001
    loss: str = "bradley_terry"  # this and the following: see `training.ICRMConfig`
    label_smoothing: float = 0.0
    positive_weight: float = 0.0
    text_form: str = "mean_nll"
    text_beta: float = 0.1
    weighting: str = "probability"
    form: str = "mutual_bce"
    centering: str = "response"
    center_rewards: float = 0.0  # TRL's `center_rewards_coefficient`; 0 = off
    margin: bool = False  # subtract the rating difference in the Bradley-Terry term, where the data have ratings
    head: str = "linear"  # "mlp": dropout, linear to `mlp_size`, ReLU, linear (GRM's head)
    mlp_size: int = 1024
    frozen_backbone: bool = False  # train the head alone
    gradient_checkpointing: bool = False
    padding_free: bool = False  # pack the responses of a batch into few full rows (see `training.ICRMConfig`)
    quantization: str = ""  # "4bit": QLoRA, the frozen weights in four bits (needs bitsandbytes)
    save_steps: int = 0  # a checkpoint every so many steps, to resume from; 0 = none


@dataclass(frozen=True)
class DownstreamSettings:
    """Best-of-N and policies: what is written, and who says what it is worth."""

    judge: str = ""  # one-label reward model, a directory or hub id; on the testbed the gold score is the judge
    prompts: int = 0  # of each split, at most; 0 = all
    max_new_tokens: int = 128  # longest response


@dataclass(frozen=True)
class Profile:
    """Everything that decides the size of a run. `name` is the stem of the YAML file."""

    name: str
    language: LanguageSettings = field(default_factory=LanguageSettings)
    data: DataSettings = field(default_factory=DataSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    base_model: BaseModelSettings = field(default_factory=BaseModelSettings)
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)
    reward_model: RewardModelSettings = field(default_factory=RewardModelSettings)
    downstream: DownstreamSettings = field(default_factory=DownstreamSettings)

    def config(self) -> dict[str, Any]:
        """Return the profile as plain nested values, for records and cache keys."""
        return asdict(self)


def profiles_folder() -> Path:
    return runtime.project_root() / "profiles"


def known_profiles() -> list[str]:
    """Return the names of the profiles in `profiles/`, sorted."""
    return sorted(path.stem for path in profiles_folder().glob("*.yaml"))


def nearest(name: str, known: list[str]) -> str:
    """Return a sentence that names the nearest known name (in any case), or all of them when none is near."""
    spelling = {candidate.casefold(): candidate for candidate in reversed(known)}
    close = difflib.get_close_matches(name.casefold(), spelling, n=1, cutoff=0.5)
    return f"did you mean {spelling[close[0]]!r}?" if close else f"known: {', '.join(known)}"


def load_profile(name: str) -> Profile:
    """Load `profiles/<name>.yaml`.

    Raises:
        ValueError: unknown profile, unknown key or a value of another type; the message names the nearest.
    """
    path = profiles_folder() / f"{name}.yaml"
    if name not in known_profiles():
        raise ValueError(f"unknown profile {name!r}; {nearest(name, known_profiles())}")
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
        ValueError: an unknown or missing key, or a value of another type.
    """
    types = get_type_hints(schema)
    for key in values:
        if key not in types:
            raise ValueError(f"{where}: unknown key {key!r}; {nearest(str(key), list(types))}")
    for item in fields(schema):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where}: the key {item.name!r} is missing; add it")
    return schema(**{key: _checked(types[key], value, f"{where}: {key}") for key, value in values.items()})


def _checked(kind: type, value: Any, where: str) -> Any:
    if is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where}: expected a mapping of settings, got {value!r}")
        return build(kind, value, where)
    # YAML reads 1e-5 as text and 1 as an integer: both are fine where a float is wanted; True and nan never are.
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            return number
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{where}: expected {kind.__name__}, got {value!r}; correct the value")
