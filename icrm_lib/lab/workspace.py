"""A profile's data and models, each made when it is missing and reused when it is there."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset

from icrm_lib import records, runtime
from icrm_lib.generator import SIBLINGS, LowerStates, cached_logprobs, cached_states
from icrm_lib.lab.artefacts import Artefacts, is_file, made_with, model_path
from icrm_lib.lab.data import Data
from icrm_lib.lab.models import (
    generator_scorer,
    language_scorer,
    lower_layers_reader,
    make_base_model,
    make_generator,
)
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import data_fingerprint, model_fingerprint
from icrm_lib.language_model.samples import sample
from icrm_lib.language_model.sampling import SamplingSettings
from icrm_lib.methods import method_settings
from icrm_lib.preferences import LABEL_KEYS
from icrm_lib.profiles import Profile, RewardModelSettings, load_profile
from icrm_lib.reward_model import RewardModel
from icrm_lib.tokenization import Conversation
from icrm_lib.training.config import reads_generator, statistic_of
from icrm_lib.training.fit import train_reward_model, unsharded_model


class Workspace(Data):
    """What one profile, seed, data source and base model give.

    Args:
        profile: name of a profile, or a `Profile`.
        seed: of the pairs, the splits, the base model and the generator. Reward models take their own.
        preferences: replaces the profile's data source when not empty ("testbed", a path, a hub id).
        base_model: replaces the profile's base model when not empty ("testbed", "scratch", a directory, a hub id).
        folder: where artefacts lie; `runs/<profile>/artefacts` when None.
        strict: refuse a file of preferences at its first bad row instead of leaving the row out.

    Raises:
        ValueError: unknown profile or generator kind, or a combination that makes no sense.
    """

    def __init__(
        self,
        profile: str | Profile,
        *,
        seed: int = 0,
        preferences: str = "",
        base_model: str = "",
        folder: str | Path | None = None,
        strict: bool = False,
    ):
        profile = load_profile(profile) if isinstance(profile, str) else profile
        self.replaced_data = str(preferences) not in ("", profile.data.preferences)
        profile = replace(
            profile,
            data=replace(profile.data, preferences=str(preferences or profile.data.preferences)),
            base_model=replace(profile.base_model, name=str(base_model or profile.base_model.name)),
        )
        name = runtime.plain_name(profile.name)
        self.folder = Path(folder or runtime.project_root() / "runs" / name / "artefacts")
        super().__init__(profile, seed, Artefacts(self.folder, name), strict=strict)
        if profile.base_model.name == "testbed" and not self.on_testbed:
            raise ValueError(
                f"the testbed's model knows only the testbed's words, not those of {profile.data.preferences!r}; "
                "set BASE_MODEL to 'scratch', a local directory or a hub id"
            )
        if profile.generator.kind == "exact" and not self.on_testbed:
            raise ValueError(
                "generator kind 'exact' is the language itself, known on the testbed only; take fitted or base"
            )

    @cached_property
    def base_model(self) -> str:
        """Directory or hub id of the base causal language model; "testbed" and "scratch" are trained here."""
        settings = self.profile.base_model
        if settings.name not in ("testbed", "scratch"):
            return self.named_base
        key = {"settings": asdict(settings), "seed": self.seed, "max_length": self.profile.data.max_length}
        if settings.name == "testbed":
            key["language"] = self.language.config()
        else:
            key["texts"] = records.fingerprint(self.training_texts())
        return str(self.artefacts.get("base_model", key, make_base_model, self))

    @cached_property
    def generator(self) -> str:
        """Directory or hub id of the frozen generator; fitted on the training pairs when its kind says so."""
        kind = self.profile.generator.kind
        if kind == "exact":
            raise ValueError("generator kind 'exact' is the language itself, not a model; use workspace.language")
        if kind == "base":
            return self._generator_start
        given = (self, self._generator_start, self._generator_pairs)
        return str(self.artefacts.get("generator", self._generator_key(), make_generator, *given, trains=True))

    @cached_property
    def _generator_start(self) -> str:
        return self.named_generator() or self.base_model

    @cached_property
    def _generator_pairs(self) -> Dataset:
        length = self.profile.generator.max_length
        if length in (0, self.profile.data.max_length):
            return self.tokenized["train"]
        return self.training_pairs(length)

    def _generator_key(self) -> dict[str, Any]:
        """All that the generator depends on; nothing is fitted for it."""
        settings = self.profile.generator
        if settings.kind == "exact":
            return {"language": self.language.config()}
        if settings.kind == "base":
            return {"model": model_fingerprint(self._generator_start)}
        pairs = data_fingerprint(self._generator_pairs)  # first: loading a hub model's tokenizer fixes its commit
        key = {"base_model": model_fingerprint(self._generator_start), "settings": asdict(settings), "pairs": pairs}
        return key | {"seed": self.seed}

    def with_logprobs(self, split: str, statistic: str = "logprobs") -> Dataset:
        """Return a split's tokenised pairs with the generator's log-probabilities (cached, memory-mapped)."""
        return self.add_logprobs(self.tokenized[split], statistic)

    def add_logprobs(self, pairs: Dataset, statistic: str = "logprobs") -> Dataset:
        """Return any tokenised pairs with this workspace's generator's answers, which are kept on disk.

        Args:
            pairs: `preferences.tokenize_pairs` output, of this workspace or another with the same tokenizer.
            statistic: one of `generator.STATISTICS`, or `generator.SIBLINGS`; for the exact generator "logprobs" or
                `SIBLINGS` only.
        """
        settings = self.profile.generator
        if settings.kind == "exact":
            if statistic not in ("logprobs", SIBLINGS):
                raise ValueError(
                    f"generator kind 'exact' knows logprobs and {SIBLINGS} only, not {statistic}; take fitted or base"
                )
            key = {"generator": self.language.config(), "temperature": 1.0, "top_p": 1.0}
            scorer = partial(language_scorer, self, statistic)
        else:
            key = {"generator": model_fingerprint(self.generator), "temperature": settings.temperature}
            key |= {"top_p": settings.top_p, "engine": settings.engine}
            scorer = partial(generator_scorer, self, self.generator, statistic)
            if self.profile.passes_once and statistic == "logprobs":
                key |= {"pass": "lower layers"}
                scorer = lambda: self.lower_states(self.profile.reward_model, pairs).scorer()  # noqa: E731
        key["made_with"] = made_with(generator_scorer.__module__)
        options = {"statistic": statistic, "cache_type": settings.cache_type}
        return cached_logprobs(pairs, scorer, self.folder, key, **options)

    def lower_states(self, settings: RewardModelSettings, pairs: Dataset) -> LowerStates | None:
        """Return what the frozen lower layers of the base model give for tokenised pairs, kept on disk.

        Args:
            settings: `frozen_layers` and `frozen_states` are read.
            pairs: as in `add_logprobs`.

        Returns:
            None where no layer is frozen, or all are run each time.
        """
        if not settings.keeps_states:
            return None
        asked, layers = self.profile.generator, settings.frozen_layers
        key = {"model": model_fingerprint(self.base_model), "made_with": made_with(lower_layers_reader.__module__)}
        key["precision"] = settings.precision
        key |= {"probabilities": [asked.temperature, asked.top_p] if self.profile.passes_once else None}
        reader = partial(lower_layers_reader, self, self.base_model, layers)
        options = {"layers": layers, "state_type": settings.frozen_states}
        return cached_states([pairs], reader, self.folder, key, **options)

    def samples(self, prompts: Sequence[Conversation], settings: SamplingSettings) -> pd.DataFrame:
        """Return the base model's responses to some prompts (see `sample`); drawn once, kept among the artefacts."""
        model = load_causal_lm(self.base_model).eval()
        return sample(model, self.tokenizer, prompts, settings, self.samples_file(settings))

    def samples_file(self, settings: SamplingSettings) -> Path:
        """Return where they are kept, drawn or not."""
        # The name stands in the file too, and changes with the code that makes the model.
        policy = [Path(self.base_model).name, model_fingerprint(self.base_model)]
        key = {"policy": policy, "settings": asdict(settings)}
        return self.artefacts.path("samples", key).with_suffix(".jsonl")

    def judge(self, conversations: Sequence[Conversation]) -> np.ndarray:
        """Say what responses are worth: gold scores on the testbed, else the rewards of the profile's judge.

        Returns:
            float64. Shape: (conversations,).

        Raises:
            ValueError: data other than the testbed's, and no judge.
        """
        if self.on_testbed:
            return np.array([self.language.gold_score(talk) for talk in conversations], dtype=float)
        return self._judge.score(conversations).astype(float)

    @cached_property
    def _judge(self) -> RewardModel:
        name = self.profile.downstream.judge
        if not name:
            raise ValueError(
                f"profile {self.profile.name!r} names no judge, and only the testbed has gold scores; set downstream: "
                "judge to the directory or hub id of a one-label reward model"
            )
        return RewardModel.from_pretrained(model_path(name))

    def reward_model(self, method: str, seed: int = 0) -> RewardModel:
        """Return the trained reward model of a method and seed; trained and saved when missing."""
        return RewardModel.from_pretrained(self.reward_model_folder(method, seed))

    def reward_model_folder(self, method: str, seed: int = 0) -> Path:
        """Return its directory: the merged model and `log.jsonl`, the training log.

        Args:
            method: of `METHODS`.
            seed: of head, LoRA and data order.
        """
        settings = method_settings(self.profile.reward_model, method)
        train = self._training_pairs(method, settings)
        weighted = reads_generator(settings)
        labels = [name for name in ("margin", *LABEL_KEYS) if name in train.column_names]
        key = {
            "base_model": model_fingerprint(self.base_model),
            "settings": asdict(settings),
            "pairs": data_fingerprint(train),
            "labels": {name: records.fingerprint(train[name][:]) for name in labels},
            "generator": [asdict(self.profile.generator), self._generator_key()] if weighted else None,
            "seeds": [self.seed, seed],
            "trained_length": self.profile.data.max_length,  # the model keeps it, and cuts what it scores
        }

        def make(folder: Path, checkpoints: Path) -> None:
            rows = self.add_logprobs(train, statistic_of(settings)) if weighted else train
            options = {"folder": folder, "seed": seed, "checkpoints": checkpoints}
            options["trained_length"] = self.profile.data.max_length
            options["states"] = self.lower_states(settings, self.tokenized["train"])
            trainer = train_reward_model(self.base_model, self.tokenizer, rows, settings, **options)
            model = unsharded_model(trainer, settings, folder)
            if model is not None:
                RewardModel(model, self.tokenizer).save_pretrained(folder)

        return self.artefacts.get("reward_model", key, make, trains=True, together=True)

    def _training_pairs(self, method: str, settings: RewardModelSettings) -> Dataset:
        """The tokenised training pairs that a method learns from, with the columns that it reads."""
        train = self.tokenized["train"]
        if settings.loss == "bradley_terry" and LABEL_KEYS[0] in train.column_names:
            labels = zip(*(train[name][:] for name in LABEL_KEYS), strict=True)
            train = train.select([row for row, (chosen, rejected) in enumerate(labels) if chosen > rejected])
        if settings.margin and "margin" not in train.column_names:
            raise ValueError(
                f"{method} subtracts the difference of ratings, and not all pairs of {self.profile.data.preferences!r} "
                "have ratings; take data that have, or another method"
            )
        if "margin" in train.column_names and not settings.margin:
            train = train.remove_columns("margin")  # TRL subtracts a margin column whenever it sees one
        return train

    def write_record(self, noun: str, metrics: dict) -> Path:
        """Write `results/<profile>/<noun>.json`, or `<noun>-<file>.json` for data that are not the profile's own.

        Args:
            noun: the stage.
            metrics: JSON-able results, by seed where there are seeds.
        """
        config = {**self.profile.config(), "seed": self.seed}
        source = self.profile.data.preferences
        if self.replaced_data:
            noun = f"{noun}-{Path(source).stem}"
            shown = runtime.display_path(runtime.resolve_path(source)) if is_file(source) else source
            config["data"] = config["data"] | {"preferences": shown}
        return records.write_record(noun, self.profile.name, config, metrics)
