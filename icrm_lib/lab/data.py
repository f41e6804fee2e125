"""A profile's preference pairs: read or generated, split by prompt, tokenised."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_caching, enable_caching
from transformers import PreTrainedTokenizerBase

from icrm_lib import records, runtime
from icrm_lib.lab.artefacts import Artefacts, is_file, model_path
from icrm_lib.lab.parts import Parts, read_fitting, whole_way, write_fitting
from icrm_lib.language_model.adapters import Adapter, is_adapter, read_adapter
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import model_fingerprint
from icrm_lib.language_model.samples import sampler
from icrm_lib.language_model.scratch import scratch_tokenizer
from icrm_lib.preferences import BLOCK, Fitting, Report, load_preferences, split_by_prompt, tokenize_fitting
from icrm_lib.preferences.paper import RECIPES, SPLITS, load_recipe, recipe_key
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language
from icrm_lib.tokenization import Conversation, load_tokenizer, prepare_tokenizer

logger = logging.getLogger(__name__)

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
    """

    def __init__(self, profile: Profile, seed: int, artefacts: Artefacts, *, strict: bool):
        self.profile, self.seed, self.artefacts, self.strict = profile, seed, artefacts, strict
        self.on_testbed = profile.data.preferences == "testbed"

    @cached_property
    def language(self) -> Language:
        """The testbed language of the profile."""
        return Language(**asdict(self.profile.language))

    @property
    def pairs(self) -> Parts:
        """The preference pairs that fit into the profile's length, by split; no prompt is in two splits."""
        return self._fitting[0]

    @property
    def tokenized(self) -> Parts:
        """The same as token ids, row by row those of `pairs`."""
        return self._fitting[1]

    @property
    def reports(self) -> list[Report]:
        """What became of the rows, one report a source: read, refused, cut, too long, used."""
        return self._fitting[2]

    @cached_property
    def _fitting(self) -> tuple[Parts, Parts, list[Report]]:
        rows, read = self._rows
        of_recipe = self.profile.data.preferences in RECIPES
        fitting = self._kept_fitting(rows) if of_recipe else self._fitting_of(rows)
        reports = whole_way(read, fitting)
        if runtime.process_index() == 0:
            for report in reports:
                for alarm in report.alarms():
                    logger.warning("%s: %s", report.source, alarm)
        pairs = {split: rows[split].select(one.places) for split, one in fitting.items()}
        return Parts(pairs, reports), Parts({split: one.tokens for split, one in fitting.items()}, reports), reports

    @cached_property
    def _rows(self) -> tuple[dict[str, Dataset], list[Report]]:
        """The rows by split, before the sizes, and the reports so far."""
        if self.on_testbed:
            return self._testbed_pairs(tuple(self._sizes.values()))
        if self.profile.data.preferences in RECIPES:
            return self._recipe[1:]
        return self._own_file()

    @property
    def _sizes(self) -> dict[str, int]:
        data = self.profile.data
        return dict(zip(SPLITS, (data.train_pairs, data.validation_pairs, data.test_pairs), strict=True))

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
        ignore = [key.strip() for key in self.profile.data.ignore.split(",") if key.strip()]
        options = {"strict": self.strict, "ignore": ignore}
        dataset, report = load_preferences(runtime.resolve_path(name) if is_file(name) else name, **options)
        prompts = len(set(dataset["prompt_id"]))
        if prompts < LEAST_PROMPTS:
            raise ValueError(
                f"{name} has {prompts} distinct prompts; training, validation and test share none, so at least "
                f"{LEAST_PROMPTS} are needed: add rows with other prompts, or mend those that were refused\n{report}"
            )
        # What does not fit goes before the split, so that the shares are of what fits. But a tokenizer that learns from
        # a split comes after it; and a large file has the shares anyway, without every row being tokenised.
        if self.profile.base_model.name != "scratch" and len(dataset) <= BLOCK:
            _, places, step = tokenize_fitting(dataset, self.tokenizer, max_length=self.profile.data.max_length)
            dataset, report = dataset.select(places), report.followed_by(step)
        parts = split_by_prompt(dataset, FRACTIONS, self.seed, empty=True)
        parts = [part.shuffle(seed=self.seed) for part in parts]
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
        """Return the texts of the training split, also those that will not fit: without a tokenizer nobody knows.

        A tokenizer must not have seen the test texts.
        """
        rows = self._rows[0]["train"]
        train = rows.select(range(min(len(rows), self._sizes["train"])))
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

    def training_pairs(self, max_length: int) -> Dataset:
        """Return the training pairs that fit into another length than the profile's, as token ids.

        Of a file whose pairs are split after those that do not fit went, these are pairs that fit into both lengths.

        Raises:
            ValueError: none fits.
        """
        rows, size = self._rows[0]["train"], self._sizes["train"]
        tokens, _, report = tokenize_fitting(rows, self.tokenizer, max_length=max_length, most=size)
        if not len(tokens):
            raise ValueError(f"no training pair fits into the generator's max_length {max_length}; raise it:\n{report}")
        if report.refused or report.alarms():
            logger.warning("training pairs of the generator: %s", report)
        return tokens

    def _fitting_of(self, rows: dict[str, Dataset]) -> dict[str, Fitting]:
        length = self.profile.data.max_length
        return {
            split: tokenize_fitting(part, self.tokenizer, max_length=length, most=self._sizes[split])
            for split, part in rows.items()
        }

    def _kept_fitting(self, rows: dict[str, Dataset]) -> dict[str, Fitting]:
        """The same for data too large for memory, in files that are checked; those that `datasets` keeps are not."""
        key = {"pairs": self._recipe[0].name, "sizes": self._sizes, "max_length": self.profile.data.max_length}
        key |= {"template": self.tokenizer.get_chat_template()}
        key |= {"tokenizer": records.fingerprint(self.tokenizer.backend_tokenizer.to_str())}

        def make(folder: Path) -> None:
            disable_caching()
            try:
                write_fitting(folder, self._fitting_of(rows))
            finally:
                enable_caching()

        folder = self.artefacts.get("tokenized", key, make)
        return read_fitting(folder, self._fitting_of({split: part.select([]) for split, part in rows.items()}))

    def conversations(self, split: str) -> dict[str, list]:
        """Return a split's pairs as whole conversations, row by row those of `tokenized[split]`.

        Returns:
            `chosen` and `rejected`: lists of conversations; `prompt_id`: what to cluster intervals by.
        """
        rows = self.pairs[split]
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
