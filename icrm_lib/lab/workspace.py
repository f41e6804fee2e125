"""A profile's data and models, each made when it is missing and reused when it is there."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from icrm_lib import records, runtime
from icrm_lib.lab.artefacts import Artefacts, is_file, model_path
from icrm_lib.lab.base_model import BaseModel
from icrm_lib.lab.data import Data
from icrm_lib.lab.generator import Generator
from icrm_lib.lab.trained import trained_folder
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import model_fingerprint
from icrm_lib.language_model.samples import sample
from icrm_lib.language_model.sampling import SamplingSettings
from icrm_lib.preferences import Report
from icrm_lib.profiles import Profile, load_profile
from icrm_lib.reward_model import RewardModel
from icrm_lib.testbed import Language
from icrm_lib.tokenization import Conversation


class Workspace:
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
        self.profile = replace(
            profile,
            data=replace(profile.data, preferences=str(preferences or profile.data.preferences)),
            base_model=replace(profile.base_model, name=str(base_model or profile.base_model.name)),
        )
        self.seed = seed
        self.replaced_data = str(preferences) not in ("", profile.data.preferences)
        name = runtime.plain_name(profile.name)
        self.folder = Path(folder or runtime.project_root() / "runs" / name / "artefacts")
        self._artefacts = Artefacts(self.folder, name)
        self._data = Data(self.profile, seed, self._artefacts, strict=strict)
        self._base_model = BaseModel(self._data)
        self._generator = Generator(self._data, self._base_model)
        self._check()

    def _check(self) -> None:
        if self.profile.base_model.name == "testbed" and not self.on_testbed:
            raise ValueError(
                f"the testbed's model knows only the testbed's words, not those of {self.profile.data.preferences!r}; "
                "set BASE_MODEL to 'scratch', a local directory or a hub id"
            )
        if self.profile.generator.kind == "exact" and not self.on_testbed:
            raise ValueError(
                "generator kind 'exact' is the language itself, known on the testbed only; take fitted or base"
            )

    @property
    def on_testbed(self) -> bool:
        """Whether the data come from the testbed, so that the truth is known."""
        return self._data.on_testbed

    @property
    def language(self) -> Language:
        """The testbed language of the profile."""
        return self._data.language

    @property
    def reports(self) -> list[Report]:
        """What loading and tokenising refused, in order; filled as the stages run."""
        return self._data.reports

    @property
    def pairs(self) -> dict[str, Dataset]:
        """Preference pairs by split; no prompt is in two splits."""
        return self._data.pairs

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, made fit for reward modelling. No model is trained for it."""
        return self._data.tokenizer

    @property
    def tokenized(self) -> dict[str, Dataset]:
        """The pairs as token ids, by split."""
        return self._data.tokenized

    def conversations(self, split: str) -> dict[str, list]:
        """Return a split's pairs as whole conversations, row by row those of `tokenized[split]`.

        Returns:
            `chosen` and `rejected`: lists of conversations; `prompt_id`: what to cluster intervals by.
        """
        return self._data.conversations(split)

    def prompts(self, split: str) -> list[Conversation]:
        """Return the prompts of a split, each once, as conversations that end with the user's turn."""
        return self._data.prompts(split)

    @property
    def base_model(self) -> str:
        """Directory or hub id of the base causal language model; "testbed" and "scratch" are trained here."""
        return self._base_model.path

    @property
    def generator(self) -> str:
        """Directory or hub id of the frozen generator; fitted on the training pairs when its kind says so."""
        return self._generator.path

    def with_logprobs(self, split: str, statistic: str = "logprobs") -> Dataset:
        """Return a split's tokenised pairs with the generator's log-probabilities (cached, memory-mapped)."""
        return self.add_logprobs(self.tokenized[split], statistic)

    def add_logprobs(self, pairs: Dataset, statistic: str = "logprobs") -> Dataset:
        """Return any tokenised pairs with this workspace's generator's answers.

        Args:
            pairs: `preferences.tokenize_pairs` output, of this workspace or another with the same tokenizer.
            statistic: one of `generator.STATISTICS`; for the exact generator "logprobs" only.
        """
        return self._generator.add_logprobs(pairs, statistic)

    def samples(self, prompts: Sequence[Conversation], settings: SamplingSettings) -> pd.DataFrame:
        """Return the base model's responses to some prompts (see `sample`); drawn once, kept among the artefacts."""
        key = {"policy": model_fingerprint(self.base_model), "settings": asdict(settings)}
        path = self._artefacts.path("samples", key).with_suffix(".jsonl")
        return sample(load_causal_lm(self.base_model).eval(), self.tokenizer, prompts, settings, path)

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
        """Return its directory: the merged model and `log.jsonl`, the training log."""
        return trained_folder(self._generator, method, seed)

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


def answered(prompts: Sequence[Conversation], samples: pd.DataFrame) -> list[Conversation]:
    """Return the conversations that samples (see `Workspace.samples`) make with their prompts, row by row."""
    return [[*prompts[row.prompt], {"role": "assistant", "content": row.response}] for row in samples.itertuples()]
