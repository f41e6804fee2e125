"""What a profile needs on disk: each artefact is made when it is missing and reused when it is there.

Artefacts lie in `runs/<profile>/artefacts/<noun>-<hash>`, the hash naming everything they depend on, so a changed
setting makes a new folder and never meets an old one.
"""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, disable_caching, enable_caching, load_from_disk
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from icrm_lib import records, runtime
from icrm_lib.generator.cache import (
    Scorer,
    both_sides,
    cached_logprobs,
    data_fingerprint,
    fit_generator,
    model_fingerprint,
    model_scorer,
    vllm_scorer,
)
from icrm_lib.language_model.causal import load_causal_lm, scratch_tokenizer, small_llama, train_language_model
from icrm_lib.language_model.loading import NO_CODE, refuse_pickles
from icrm_lib.preferences import Report, load_preferences, split_by_prompt, tokenize_pairs
from icrm_lib.preferences.paper import RECIPES, load_recipe, read_reports, recipe_key, sampler, write_reports
from icrm_lib.profiles import GeneratorSettings, Profile, load_profile
from icrm_lib.reward_model.model import RewardModel
from icrm_lib.testbed import Language
from icrm_lib.tokenization import Conversation, prepare_tokenizer
from icrm_lib.training.collation import LABEL_COLUMNS
from icrm_lib.training.methods import method_settings, train_reward_model, whole_model
from icrm_lib.training.trainer import reads_generator, statistic_of

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
FRACTIONS = (0.7, 0.1, 0.2)  # of the prompts of a user's own file
LEAST_PROMPTS = 10  # below it a tenth of the prompts is none
# The modules whose code decides an artefact; a change in one of them makes it anew.
_DATA = ("testbed/language", "testbed/words", "preferences/loading", "tokenization", "lab/workspace")
MAKERS = {
    "pairs": (
        "testbed/language",
        "testbed/words",
        "preferences/files",
        "tokenization",
        "preferences/loading",
        "language_model/sampling",
        "preferences/paper",
    ),
    "tokenizer": ("language_model/causal", "tokenization"),
    "tokenized": ("preferences/loading", "tokenization", "preferences/paper"),
    "base_model": (*_DATA, "language_model/causal"),
    "generator": (*_DATA, "language_model/causal", "generator/cache"),
    "logprobs": (*_DATA, "language_model/causal", "generator/cache"),
    "reward_model": (
        *_DATA,
        "language_model/causal",
        "generator/cache",
        "objectives",
        "reward_model/head",
        "reward_model/model",
        "training/collation",
        "training/trainer",
        "training/methods",
    ),
}
GENERATOR_KINDS = ("fitted", "base", "exact")
ENGINES = ("transformers", "vllm")


class Workspace:
    """The artefacts of one profile, seed, data source and base model.

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
        self.seed, self.strict = seed, strict
        self.replaced_data = str(preferences) not in ("", profile.data.preferences)
        name = runtime.plain_name(profile.name)
        self.folder = Path(folder or runtime.project_root() / "runs" / name / "artefacts")
        if self.profile.base_model.name == "testbed" and not self.on_testbed:
            raise ValueError(
                f"the testbed's model knows only the testbed's words, not those of {self.profile.data.preferences!r}; "
                "set BASE_MODEL to 'scratch', a local directory or a hub id"
            )
        kind = self.profile.generator.kind
        if kind not in GENERATOR_KINDS or (kind == "exact" and not self.on_testbed):
            raise ValueError(f"generator kind {kind!r}: choose one of {GENERATOR_KINDS}; 'exact' on the testbed only")
        if self.profile.generator.engine not in ENGINES:
            raise ValueError(f"generator engine {self.profile.generator.engine!r}: choose one of {ENGINES}")

    @property
    def on_testbed(self) -> bool:
        """Whether the data come from the testbed, so that the truth is known."""
        return self.profile.data.preferences == "testbed"

    @cached_property
    def language(self) -> Language:
        """The testbed language of the profile."""
        return Language(**asdict(self.profile.language))

    @cached_property
    def reports(self) -> list[Report]:
        """What loading and tokenising refused, in order; filled as the stages run."""
        return []

    # Data ----------------------------------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> dict[str, Dataset]:
        """Preference pairs by split; no prompt is in two splits."""
        data = self.profile.data
        limits = (data.train_pairs, data.validation_pairs, data.test_pairs)
        if self.on_testbed:
            folder = self._testbed_files(limits)
            loaded = [load_preferences(folder / f"{split}.jsonl") for split in SPLITS]
            self.reports.extend(report for _, report in loaded)
            return dict(zip(SPLITS, (dataset for dataset, _ in loaded), strict=True))
        if data.preferences in RECIPES:
            loaded, reports = self._recipe()
            self.reports.extend(reports)
            return {
                split: loaded[split].select(range(min(limit, len(loaded[split]))))  # the paper's order
                for split, limit in zip(SPLITS, limits, strict=True)
            }
        source = runtime.resolve_path(data.preferences) if _is_file(data.preferences) else data.preferences
        dataset, report = load_preferences(source, strict=self.strict)
        self.reports.append(report)
        prompts = len(set(dataset["prompt_id"]))
        if prompts < LEAST_PROMPTS:
            raise ValueError(
                f"{data.preferences} has {prompts} distinct prompts; training, validation and test share none, so at "
                f"least {LEAST_PROMPTS} are needed: add rows with other prompts"
            )
        parts = split_by_prompt(dataset, FRACTIONS, self.seed)
        shuffled = (part.shuffle(seed=self.seed) for part in parts)
        capped = (part.select(range(min(limit, len(part)))) for part, limit in zip(shuffled, limits, strict=True))
        return dict(zip(SPLITS, capped, strict=True))

    def _testbed_files(self, sizes: tuple[int, ...]) -> Path:
        key = {"language": self.language.config(), "sizes": list(sizes), "seed": self.seed}

        def make(folder: Path) -> None:
            prompts = self.language.split_prompts()
            for index, (split, size) in enumerate(zip(SPLITS, sizes, strict=True)):
                rng = np.random.default_rng([self.seed, index])
                rows = self.language.preference_pairs(size, rng, prompts=prompts[index])
                lines = (json.dumps({name: row[name] for name in ("prompt", "chosen", "rejected")}) for row in rows)
                (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

        return self._artefact("pairs", key, make)

    def _recipe(self) -> tuple[dict[str, Dataset], list[Report]]:
        """The data of a recipe of `paper_data` and their reports."""
        data, draw = self.profile.data, None
        key = recipe_key(data.preferences, data)
        if data.preferences == "prm800k":
            if self.profile.generator.kind != "base" or self.profile.base_model.name == "scratch":
                raise ValueError(
                    f"prm800k is sampled by the generator, so generator kind {self.profile.generator.kind!r} and base "
                    f"model {self.profile.base_model.name!r} cannot be trained on it first; set kind to 'base' and the "
                    "base model to a local directory or a hub id"
                )
            tokenizer = self.tokenizer  # before the fingerprint: it fixes a hub model's commit
            drawn = {"samples": asdict(self.profile.samples), "seed": self.seed}
            drawn |= {"generator": model_fingerprint(self.generator)}
            path = self._path("samples", drawn).with_suffix(".jsonl")  # outside the artefact: outlives a killed run
            draw = sampler(self.generator, tokenizer, self.profile.samples, path, seed=self.seed)
            key |= drawn
        load = partial(load_recipe, data.preferences, data, draw=draw, seed=self.seed)
        self.recipe_folder = self._artefact("pairs", key, load)
        return load(self.recipe_folder)

    # Base model ----------------------------------------------------------------------------------------------------

    @cached_property
    def base_model(self) -> str:
        """Directory or hub id of the base causal language model; "testbed" and "scratch" are trained here."""
        settings = self.profile.base_model
        if settings.name not in ("testbed", "scratch"):
            return self._model_path(settings.name)
        key = {"settings": asdict(settings), "seed": self.seed, "max_length": self.profile.data.max_length}
        if settings.name == "testbed":
            key["language"] = self.language.config()
        else:
            key["texts"] = records.fingerprint(self._texts())
        return str(self._artefact("base_model", key, self._train_base_model))

    @staticmethod
    def _model_path(name: str) -> str:
        """Return a model's directory as an absolute path, a hub id as it is."""
        if _is_folder(name):
            refuse_pickles(runtime.resolve_path(name))
            return str(runtime.resolve_path(name))
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ValueError(
                f"no base model directory {name!r} (a relative path starts at the project's folder); correct the path, "
                "or give 'testbed', 'scratch' or a hub id"
            )
        return name

    def _train_base_model(self, folder: Path) -> None:
        settings, length, tokenizer = self.profile.base_model, self.profile.data.max_length, self.tokenizer
        if settings.name == "testbed":
            sequences = self._testbed_sequences(tokenizer, settings.steps * settings.batch_size)
        else:
            texts = both_sides(self.tokenized["train"])
            sequences = texts.map(lambda row: {"prompt_length": 1})  # the prompt is text to learn, too
        size = {"hidden_size": settings.hidden_size, "layers": settings.layers, "heads": settings.heads}
        model = small_llama(tokenizer, **size, max_length=length, seed=self.seed)
        train_language_model(
            model,
            sequences,
            folder=folder,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=self.seed,
            steps=settings.steps,
        )
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))

    def _texts(self) -> list[str]:
        # Training split only: the tokenizer must not have seen the test texts.
        train = self.pairs["train"]
        prompts = [message["content"] for prompt in train["prompt"] for message in prompt]
        return [*prompts, *train["chosen"], *train["rejected"]]

    def _testbed_sequences(self, tokenizer: PreTrainedTokenizerBase, count: int) -> Dataset:
        """Unlabelled responses to every prompt, as a pre-training corpus."""
        language = self.language
        rng = np.random.default_rng([self.seed, 1000])
        each = -(-count // len(language.prompts))
        rows = []
        for prompt in language.prompts:
            question = {"role": "user", "content": prompt}
            head = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
            responses = language.sample_responses(prompt, each, rng)
            ids = tokenizer(responses, add_special_tokens=False)["input_ids"]
            rows.extend(head + row + [tokenizer.eos_token_id] for row in ids)
        rng.shuffle(rows)
        return Dataset.from_dict({"input_ids": rows, "prompt_length": [1] * len(rows)})

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, made fit for reward modelling. No model is trained for it."""
        settings = self.profile.base_model
        if settings.name == "testbed":
            return prepare_tokenizer(self.language.tokenizer)
        if settings.name != "scratch":
            return prepare_tokenizer(AutoTokenizer.from_pretrained(self.base_model, **NO_CODE))
        key = {"texts": records.fingerprint(self._texts()), "vocabulary": settings.vocabulary}

        def make(folder: Path) -> None:
            scratch_tokenizer(self._texts(), settings.vocabulary).save_pretrained(str(folder))

        folder = self._artefact("tokenizer", key, make)
        return prepare_tokenizer(AutoTokenizer.from_pretrained(folder, **NO_CODE))

    @cached_property
    def tokenized(self) -> dict[str, Dataset]:
        """The pairs as token ids, by split."""
        result = {}
        if self.profile.data.preferences in RECIPES:
            return self._tokenized_recipe()
        for split, dataset in self.pairs.items():
            result[split], report = tokenize_pairs(dataset, self.tokenizer, max_length=self.profile.data.max_length)
            self.reports.append(report)
        return result

    def _tokenized_recipe(self) -> dict[str, Dataset]:
        """The same for data too large for memory, in files that are checked; those that `datasets` keeps are not."""
        pairs, length = self.pairs, self.profile.data.max_length
        key = {"pairs": self.recipe_folder.name, "rows": {split: len(rows) for split, rows in pairs.items()}}
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

        folder = self._artefact("tokenized", key, make)
        self.reports.extend(read_reports(folder))
        return {split: load_from_disk(str(folder / split)) for split in SPLITS}

    def conversations(self, split: str) -> dict[str, list]:
        """Return a split's pairs as whole conversations, row by row those of `tokenized[split]`.

        Returns:
            `chosen` and `rejected`: lists of conversations; `prompt_id`: what to cluster intervals by.
        """
        kept = set(self.tokenized[split]["line"])
        rows = [row for row in self.pairs[split] if row["line"] in kept]
        sides = {
            side: [[*row["prompt"], {"role": "assistant", "content": row[side]}] for row in rows]
            for side in ("chosen", "rejected")
        }
        return {**sides, "prompt_id": [row["prompt_id"] for row in rows]}

    def prompts(self, split: str) -> list[Conversation]:
        """Return the prompts of a split, each once, as conversations that end with the user's turn."""
        most = self.profile.downstream.prompts or None
        if self.on_testbed:
            texts = self.language.split_prompts()[SPLITS.index(split)]
            return [[{"role": "user", "content": text}] for text in texts][:most]
        pairs = self.pairs[split]
        first = {prompt_id: row for row, prompt_id in reversed(list(enumerate(pairs["prompt_id"][:])))}
        return pairs.select(sorted(first.values())[:most])["prompt"][:]

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
        return RewardModel.from_pretrained(self._model_path(name))

    # Generator -----------------------------------------------------------------------------------------------------

    @cached_property
    def generator(self) -> str:
        """Directory or hub id of the frozen generator; fitted on the training pairs when its kind says so."""
        settings = self.profile.generator
        if settings.kind == "exact":
            raise ValueError("generator kind 'exact' is the language itself, not a model; use workspace.language")
        start, pairs, key = self._generator_key()
        if settings.kind == "base":
            return start

        def make(folder: Path, checkpoints: Path) -> None:
            model = fit_generator(start, pairs, settings, folder, seed=self.seed, checkpoints=checkpoints)
            model.save_pretrained(str(folder))
            self.tokenizer.save_pretrained(str(folder))

        return str(self._artefact("generator", key, make, trains=True))

    def _generator_key(self) -> tuple[str, Dataset | None, dict[str, Any]]:
        """Where the generator starts, what it is fitted on, and all that it depends on; nothing is fitted."""
        settings = self.profile.generator
        if settings.kind == "exact":
            return "", None, {"language": self.language.config()}
        start = self._model_path(settings.model) if settings.model else self.base_model
        if settings.model:
            self._check_vocabulary(start)
        if settings.kind == "base":
            return start, None, {"model": model_fingerprint(start)}
        train = self.tokenized["train"]  # before the fingerprint: loading a hub model's tokenizer fixes its commit
        if settings.max_length not in (0, self.profile.data.max_length):
            train, _ = tokenize_pairs(self.pairs["train"], self.tokenizer, max_length=settings.max_length)
        key = {"base_model": model_fingerprint(start), "settings": asdict(settings), "seed": self.seed}
        return start, train, key | {"pairs": data_fingerprint(train)}

    def _check_vocabulary(self, model: str) -> None:
        # Its probabilities are read for the reward model's token ids. Rows beyond the vocabulary do not matter.
        other = AutoTokenizer.from_pretrained(model, **NO_CODE)
        if other.get_vocab() != self.tokenizer.get_vocab():
            raise ValueError(
                f"the generator {self.profile.generator.model!r} has another vocabulary than the base model "
                f"{self.profile.base_model.name!r}; its probabilities are of other tokens: name a model of one family"
            )

    def with_logprobs(self, split: str, statistic: str = "logprobs") -> Dataset:
        """Return a split's tokenised pairs with the generator's log-probabilities (cached, memory-mapped)."""
        return self.add_logprobs(self.tokenized[split], statistic)

    def add_logprobs(self, pairs: Dataset, statistic: str = "logprobs") -> Dataset:
        """Return any tokenised pairs with this workspace's generator's answers.

        Args:
            pairs: `preferences.tokenize_pairs` output, of this workspace or another with the same tokenizer.
            statistic: one of `generator.STATISTICS`; for the exact generator "logprobs" only.
        """
        settings = self.profile.generator
        exact = settings.kind == "exact"
        if exact and statistic != "logprobs":
            raise ValueError(f"generator kind 'exact' knows logprobs only, not {statistic}; use 'fitted' or 'base'")
        key = {"generator": self.language.config() if exact else model_fingerprint(self.generator)}
        key |= {"temperature": 1.0, "top_p": 1.0} if exact else _asked_with(settings)
        key["made_with"] = made_with("logprobs")
        make = self._exact if exact else partial(self._generator_scorer, statistic)
        return cached_logprobs(pairs, make, self.folder, key, statistic=statistic, cache_type=settings.cache_type)

    def _generator_scorer(self, statistic: str) -> Scorer:
        settings = self.profile.generator
        if runtime.processes() > 1:
            raise RuntimeError(_PREPARE_FIRST.format(noun="generator's answers", profile=self.profile.name))
        if settings.engine == "vllm":
            if (settings.temperature, settings.top_p, statistic) != (1.0, 1.0, "logprobs"):
                raise ValueError(
                    f"vLLM answers at temperature 1 and top_p 1 with logprobs, not at {settings.temperature}, "
                    f"{settings.top_p} with {statistic}; set generator: engine to transformers"
                )
            return vllm_scorer(self.generator)
        options = {"temperature": settings.temperature, "top_p": settings.top_p, "statistic": statistic}
        return model_scorer(load_causal_lm(self.generator), self.tokenizer.pad_token_id, **options)

    def _exact(self) -> Scorer:
        return lambda rows: [np.log(self.language.token_probs(ids)[start:]).astype(np.float32) for ids, start in rows]

    # Reward model --------------------------------------------------------------------------------------------------

    def reward_model(self, method: str, seed: int = 0) -> RewardModel:
        """Return the trained reward model of a method and seed; trained and saved when missing."""
        return RewardModel.from_pretrained(self.reward_model_folder(method, seed))

    def reward_model_folder(self, method: str, seed: int = 0) -> Path:
        """Return its directory: the merged model and `log.jsonl`, the training log."""
        settings = method_settings(self.profile.reward_model, method)
        needs_generator = reads_generator(settings)
        train = self.tokenized["train"]
        if settings.loss == "bradley_terry" and LABEL_COLUMNS[0] in train.column_names:
            labels = zip(*(train[name][:] for name in LABEL_COLUMNS), strict=True)
            train = train.select([row for row, (chosen, rejected) in enumerate(labels) if chosen > rejected])
        if settings.margin and "margin" not in train.column_names:
            raise ValueError(
                f"{method} subtracts the difference of ratings, and not all pairs of {self.profile.data.preferences!r} "
                "have ratings; take data that have, or another method"
            )
        if "margin" in train.column_names and not settings.margin:
            train = train.remove_columns("margin")  # TRL subtracts a margin column whenever it sees one
        key = {
            "base_model": model_fingerprint(self.base_model),
            "settings": asdict(settings),
            "pairs": data_fingerprint(train),
            "margin": records.fingerprint(train["margin"][:]) if "margin" in train.column_names else None,
            "generator": [asdict(self.profile.generator), self._generator_key()[2]] if needs_generator else None,
            "seeds": [self.seed, seed],
        }
        if labels := [name for name in LABEL_COLUMNS if name in train.column_names]:
            key["labels"] = records.fingerprint([train[name][:] for name in labels])

        def make(folder: Path, checkpoints: Path) -> None:
            rows = self.add_logprobs(train, statistic_of(settings)) if needs_generator else train
            options = {"folder": folder, "seed": seed, "checkpoints": checkpoints}
            trainer = train_reward_model(self.base_model, self.tokenizer, rows, settings, **options)
            model = whole_model(trainer, settings, folder)
            if model is not None:
                RewardModel(model, self.tokenizer).save_pretrained(folder)

        return self._artefact("reward_model", key, make, trains=True)

    # Records -------------------------------------------------------------------------------------------------------

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
            shown = runtime.display_path(runtime.resolve_path(source)) if _is_file(source) else source
            config["data"] = config["data"] | {"preferences": shown}
        return records.write_record(noun, self.profile.name, config, metrics)

    # ---------------------------------------------------------------------------------------------------------------

    def _path(self, noun: str, key: dict) -> Path:
        return self.folder / f"{noun}-{records.fingerprint(key)}"

    def _artefact(self, noun: str, key: dict, make: Callable[..., None], *, trains: bool = False) -> Path:
        """Return the folder of an artefact; `make(folder)` fills it when it is missing or not whole.

        Of two runs that want it one makes it and the other waits. With `trains`, `make(folder, checkpoints)` gets a
        second folder, which outlives a run that is cut off; processes that train together all call it.
        """
        key = key | {"made_with": made_with(noun)}
        path = self._path(noun, key)
        checkpoints = self.folder / "checkpoints" / path.name
        if records.is_whole(path, key, verify=True):
            logger.info("reusing %s", runtime.display_path(path))
            shutil.rmtree(checkpoints, ignore_errors=True)  # of a run that was killed just before it removed them
            return path
        if runtime.processes() > 1 and noun != "reward_model":
            raise RuntimeError(_PREPARE_FIRST.format(noun=noun.replace("_", " "), profile=self.profile.name))
        first = runtime.process_index() == 0  # the others train with it; it keeps the files
        with records.locked(path) if first else nullcontext():
            # Nobody may have made it while this run waited; what the first process finds holds for all.
            if _of_first(not records.is_whole(path, key, verify=True)):
                logger.info("making %s", runtime.display_path(path))
                with records.whole_folder(path, key) if first else tempfile.TemporaryDirectory() as folder:
                    make(Path(folder), checkpoints) if trains else make(folder)
            if first:
                shutil.rmtree(checkpoints, ignore_errors=True)
        _of_first(None)
        return path


def _of_first(value: Any) -> Any:
    """Return the first process's value in all that train together; none goes on before it."""
    if runtime.processes() == 1:
        return value
    PartialState(cpu=runtime.device() == "cpu")  # starts the group of processes where nobody has
    return broadcast_object_list([value])[0]


_PREPARE_FIRST = (
    "profile {profile}: the {noun} is not there yet, and one process makes it, not several; run the same command first "
    "without `accelerate launch` and with --prepare: python -m icrm_lib.cli.train ... --prepare"
)


def _asked_with(settings: GeneratorSettings) -> dict[str, Any]:
    return {"temperature": settings.temperature, "top_p": settings.top_p, "engine": settings.engine}


@cache
def made_with(noun: str) -> dict:
    """Return what an artefact depends on beside its settings: versions, kind of device, and the code that makes it."""
    folder = Path(__file__).parents[1]
    code = {name: records.file_checksum(folder / f"{name}.py") for name in MAKERS[noun]}
    return {"versions": runtime.versions(), "device": runtime.device(), "code": records.fingerprint(code)}


def _is_file(source: str) -> bool:
    return Path(source).suffix in {".jsonl", ".json", ".parquet", ".gz"} or runtime.resolve_path(source).exists()


def _is_folder(name: str) -> bool:
    return runtime.resolve_path(name).is_dir()
