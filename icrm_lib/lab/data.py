"""A profile's preference pairs: read or generated, split by prompt, tokenised."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_caching, enable_caching, load_from_disk
from transformers import PreTrainedTokenizerBase

from icrm_lib import records, runtime
from icrm_lib.lab.artefacts import Artefacts, is_file, model_path
from icrm_lib.language_model.adapters import Adapter, is_adapter, read_adapter
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import model_fingerprint
from icrm_lib.language_model.samples import sampler
from icrm_lib.language_model.scratch import scratch_tokenizer
from icrm_lib.preferences import Report, load_preferences, read_reports, split_by_prompt, tokenize_pairs, write_reports
from icrm_lib.preferences.paper import RECIPES, SPLITS, load_recipe, recipe_key
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language
from icrm_lib.tokenization import Conversation, load_tokenizer, prepare_tokenizer

FRACTIONS = (0.7, 0.1, 0.2)  # of the prompts of a user's own file
LEAST_PROMPTS = 10  # below it a tenth of the prompts is none


class Data:
    """The pairs of one profile, seed and data source, and their tokenizer.

    Args:
        profile: read are `data`, and what the tokenizer and sampled pairs depend on.
        seed: of the pairs and the splits.
        artefacts: where what is made lies.
        strict: refuse a file at its first bad row instead of leaving the row out.

    Attributes:
        on_testbed: whether the data come from the testbed, so that the truth is known.
        reports: what loading and tokenising refused, in order; filled as the stages run.
    """

    def __init__(self, profile: Profile, seed: int, artefacts: Artefacts, *, strict: bool):
        self.profile, self.seed, self.artefacts, self.strict = profile, seed, artefacts, strict
        self.on_testbed = profile.data.preferences == "testbed"
        self.reports: list[Report] = []

    @cached_property
    def language(self) -> Language:
        """The testbed language of the profile."""
        return Language(**asdict(self.profile.language))

    @cached_property
    def pairs(self) -> dict[str, Dataset]:
        """Preference pairs by split; no prompt is in two splits."""
        data = self.profile.data
        limits = (data.train_pairs, data.validation_pairs, data.test_pairs)
        if self.on_testbed:
            parts, reports = self._testbed_pairs(limits)
        elif data.preferences in RECIPES:
            _, parts, reports = self._recipe
        else:
            parts, reports = self._own_file()
        self.reports.extend(reports)
        capped = zip(SPLITS, limits, strict=True)
        return {split: parts[split].select(range(min(limit, len(parts[split])))) for split, limit in capped}

    def _testbed_pairs(self, sizes: tuple[int, ...]) -> tuple[dict[str, Dataset], list[Report]]:
        def make(folder: Path) -> None:
            prompts = self.language.split_prompts()
            for index, (split, size) in enumerate(zip(SPLITS, sizes, strict=True)):
                rng = np.random.default_rng([self.seed, index])
                rows = self.language.preference_pairs(size, rng, prompts=prompts[index])
                lines = (json.dumps({name: row[name] for name in ("prompt", "chosen", "rejected")}) for row in rows)
                (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

        key = {"language": self.language.config(), "sizes": list(sizes), "seed": self.seed}
        folder = self.artefacts.get("pairs", key, make)
        parts, reports = zip(*(load_preferences(folder / f"{split}.jsonl") for split in SPLITS), strict=True)
        return dict(zip(SPLITS, parts, strict=True)), list(reports)

    def _own_file(self) -> tuple[dict[str, Dataset], list[Report]]:
        name = self.profile.data.preferences
        dataset, report = load_preferences(runtime.resolve_path(name) if is_file(name) else name, strict=self.strict)
        prompts = len(set(dataset["prompt_id"]))
        if prompts < LEAST_PROMPTS:
            raise ValueError(
                f"{name} has {prompts} distinct prompts; training, validation and test share none, so at least "
                f"{LEAST_PROMPTS} are needed: add rows with other prompts"
            )
        parts = [part.shuffle(seed=self.seed) for part in split_by_prompt(dataset, FRACTIONS, self.seed)]
        return dict(zip(SPLITS, parts, strict=True)), [report]

    @cached_property
    def _recipe(self) -> tuple[Path, dict[str, Dataset], list[Report]]:
        """The data of a recipe of `preferences.paper`: their folder, the splits and the reports."""
        data, draw = self.profile.data, None
        key = recipe_key(data.preferences, data)
        if data.preferences == "prm800k":
            drawn, draw = self._sampled()
            key |= drawn

        def load(folder: Path) -> tuple[dict[str, Dataset], list[Report]]:
            return load_recipe(data.preferences, data, folder, draw=draw, seed=self.seed)

        folder = self.artefacts.get("pairs", key, load)
        return folder, *load(folder)

    def _sampled(self) -> tuple[dict[str, Any], Any]:
        """What sampled pairs depend on, and what samples them."""
        kind, base_model = self.profile.generator.kind, self.profile.base_model.name
        if kind != "base" or base_model == "scratch":
            raise ValueError(
                f"prm800k is sampled by the generator, so generator kind {kind!r} and base model {base_model!r} cannot "
                "be trained on it first; set kind to 'base' and the base model to a local directory or a hub id"
            )
        tokenizer = self.tokenizer  # before the fingerprint: it fixes a hub model's commit
        generator = self.named_generator() or self.named_base
        drawn = {"samples": asdict(self.profile.samples), "seed": self.seed, "generator": model_fingerprint(generator)}
        # outside the artefact: it outlives a killed run
        path = self.artefacts.path("samples", drawn).with_suffix(".jsonl")
        return drawn, sampler(generator, tokenizer, self.profile.samples, path, seed=self.seed)

    @cached_property
    def named_base(self) -> str:
        """Directory or hub id of a base model that is not made here; an adapter is merged into its base first."""
        path = model_path(self.profile.base_model.name)
        if not is_adapter(Path(path)):
            return path
        adapter = read_adapter(Path(path))
        key = {"adapter": model_fingerprint(path), "base": model_fingerprint(adapter.base)}
        return str(self.artefacts.get("merged", key, _save_merged, adapter))

    def named_generator(self) -> str:
        """Return the path of the model that the profile names as generator, "" where it names none.

        Raises:
            ValueError: its vocabulary is not the base model's.
        """
        name = self.profile.generator.model
        if not name:
            return ""
        path = model_path(name)
        # Its probabilities are read for the reward model's token ids. Rows beyond the vocabulary do not matter.
        if load_tokenizer(path).get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"the generator {name!r} has another vocabulary than the base model {self.profile.base_model.name!r}; "
                "its probabilities are of other tokens: name a model of one family"
            )
        return path

    def training_texts(self) -> list[str]:
        """Return all texts of the training split: a tokenizer must not have seen the test texts."""
        train = self.pairs["train"]
        prompts = [message["content"] for prompt in train["prompt"] for message in prompt]
        return [*prompts, *train["chosen"], *train["rejected"]]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, made fit for reward modelling. No model is trained for it."""
        settings = self.profile.base_model
        if settings.name == "testbed":
            return prepare_tokenizer(self.language.tokenizer)
        if settings.name != "scratch":
            return prepare_tokenizer(load_tokenizer(self.named_base))

        def make(folder: Path) -> None:
            scratch_tokenizer(self.training_texts(), settings.vocabulary).save_pretrained(str(folder))

        key = {"texts": records.fingerprint(self.training_texts()), "vocabulary": settings.vocabulary}
        folder = self.artefacts.get("tokenizer", key, make)
        return prepare_tokenizer(load_tokenizer(folder))

    @cached_property
    def tokenized(self) -> dict[str, Dataset]:
        """The pairs as token ids, by split."""
        if self.profile.data.preferences in RECIPES:
            return self._tokenized_recipe()
        result = {}
        for split, rows in self.pairs.items():
            result[split], report = tokenize_pairs(rows, self.tokenizer, max_length=self.profile.data.max_length)
            self.reports.append(report)
        return result

    def _tokenized_recipe(self) -> dict[str, Dataset]:
        """The same for data too large for memory, in files that are checked; those that `datasets` keeps are not."""
        pairs, length = self.pairs, self.profile.data.max_length
        key = {"pairs": self._recipe[0].name, "rows": {split: len(rows) for split, rows in pairs.items()}}
        key |= {"max_length": length, "template": self.tokenizer.get_chat_template()}
        key |= {"tokenizer": records.fingerprint(self.tokenizer.backend_tokenizer.to_str())}

        def make(folder: Path) -> None:
            disable_caching()
            try:
                done = {split: tokenize_pairs(rows, self.tokenizer, max_length=length) for split, rows in pairs.items()}
            finally:
                enable_caching()
            for split, (rows, _) in done.items():
                rows.save_to_disk(str(folder / split))
            write_reports(folder, [report for _, report in done.values()])

        folder = self.artefacts.get("tokenized", key, make)
        self.reports.extend(read_reports(folder))
        return {split: load_from_disk(str(folder / split)) for split in SPLITS}

    def conversations(self, split: str) -> dict[str, list]:
        """Return a split's pairs as whole conversations, row by row those of `tokenized[split]`.

        Returns:
            `chosen` and `rejected`: lists of conversations; `prompt_id`: what to cluster intervals by.
        """
        kept = set(self.tokenized[split]["line"])
        pairs = self.pairs[split]
        rows = pairs.select([row for row, line in enumerate(pairs["line"][:]) if line in kept])
        sides = {side: replied(rows["prompt"], rows[side]) for side in ("chosen", "rejected")}
        return {**sides, "prompt_id": rows["prompt_id"][:]}

    def prompts(self, split: str) -> list[Conversation]:
        """Return the prompts of a split, each once, as conversations that end with the user's turn."""
        most = self.profile.downstream.prompts or None
        if self.on_testbed:
            texts = self.language.split_prompts()[SPLITS.index(split)]
            return [[{"role": "user", "content": text}] for text in texts][:most]
        pairs = self.pairs[split]
        first = {prompt_id: row for row, prompt_id in reversed(list(enumerate(pairs["prompt_id"][:])))}
        return pairs.select(sorted(first.values())[:most])["prompt"][:]


def _save_merged(adapter: Adapter, folder: Path) -> None:
    load_causal_lm(adapter.folder, device="cpu").save_pretrained(str(folder))
    own = (adapter.folder / "tokenizer_config.json").is_file()
    load_tokenizer(adapter.folder if own else adapter.base).save_pretrained(str(folder))


def replied(prompts: Iterable[Conversation], replies: Iterable[str]) -> list[Conversation]:
    """Return the conversations that prompts make with their replies."""
    return [[*prompt, {"role": "assistant", "content": reply}] for prompt, reply in zip(prompts, replies, strict=True)]
