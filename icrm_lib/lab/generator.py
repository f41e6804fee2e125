"""The frozen generator of a workspace: named, fitted on the training pairs, or the testbed's language itself."""

from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from icrm_lib.generator import Scorer, cached_logprobs, fit_generator, model_scorer, vllm_scorer
from icrm_lib.lab.artefacts import made_with
from icrm_lib.lab.base_model import BaseModel
from icrm_lib.lab.data import Data
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import data_fingerprint, model_fingerprint
from icrm_lib.preferences import tokenize_pairs


class Generator:
    """The generator of a profile's data; it starts from the base model, or from the model that the profile names."""

    def __init__(self, data: Data, base_model: BaseModel):
        self.data, self.base_model, self.settings = data, base_model, data.profile.generator
        self.is_exact = self.settings.kind == "exact"

    @cached_property
    def path(self) -> str:
        """Directory or hub id; fitted when its kind says so."""
        if self.is_exact:
            raise ValueError("generator kind 'exact' is the language itself, not a model; use workspace.language")
        if self.settings.kind == "base":
            return self._start

        def make(folder: Path, checkpoints: Path) -> None:
            options = {"seed": self.data.seed, "checkpoints": checkpoints}
            model = fit_generator(self._start, self._pairs(), self.settings, folder, **options)
            model.save_pretrained(str(folder))
            self.data.tokenizer.save_pretrained(str(folder))

        return str(self.data.artefacts.get("generator", self.key(), make, trains=True))

    def key(self) -> dict[str, Any]:
        """Return all that it depends on; nothing is fitted for it."""
        if self.is_exact:
            return {"language": self.data.language.config()}
        if self.settings.kind == "base":
            return {"model": model_fingerprint(self._start)}
        pairs = data_fingerprint(self._pairs())  # first: loading a hub model's tokenizer fixes its commit
        key = {"base_model": model_fingerprint(self._start), "settings": asdict(self.settings), "pairs": pairs}
        return key | {"seed": self.data.seed}

    @cached_property
    def _start(self) -> str:
        return self.data.named_generator() or self.base_model.path

    def _pairs(self) -> Dataset:
        data, length = self.data, self.settings.max_length
        if length in (0, data.profile.data.max_length):
            return data.tokenized["train"]
        return tokenize_pairs(data.pairs["train"], data.tokenizer, max_length=length)[0]

    def add_logprobs(self, pairs: Dataset, statistic: str = "logprobs") -> Dataset:
        """Return tokenised pairs with its answers, which are kept on disk; see `Workspace.add_logprobs`."""
        settings = self.settings
        if self.is_exact:
            if statistic != "logprobs":
                raise ValueError(f"generator kind 'exact' knows logprobs only, not {statistic}; use 'fitted' or 'base'")
            key = {"generator": self.data.language.config(), "temperature": 1.0, "top_p": 1.0}
            scorer = self._language_scorer
        else:
            key = {"generator": model_fingerprint(self.path), "temperature": settings.temperature}
            key |= {"top_p": settings.top_p, "engine": settings.engine}
            scorer = partial(self._model_scorer, statistic)
        key["made_with"] = made_with(__name__)
        options = {"statistic": statistic, "cache_type": settings.cache_type}
        return cached_logprobs(pairs, scorer, self.data.artefacts.folder, key, **options)

    def _model_scorer(self, statistic: str) -> Scorer:
        settings = self.settings
        self.data.artefacts.refuse_several_processes("generator's answers")
        options = {"temperature": settings.temperature, "top_p": settings.top_p, "statistic": statistic}
        if settings.engine == "transformers":
            return model_scorer(load_causal_lm(self.path), self.data.tokenizer.pad_token_id, **options)
        if tuple(options.values()) != (1.0, 1.0, "logprobs"):
            raise ValueError(
                f"vLLM answers at temperature 1 and top_p 1 with logprobs, not at {settings.temperature}, "
                f"{settings.top_p} with {statistic}; set generator: engine to transformers"
            )
        return vllm_scorer(self.path)

    def _language_scorer(self) -> Scorer:
        exact = self.data.language.token_probs
        return lambda rows: [np.log(exact(ids)[start:]).astype(np.float32) for ids, start in rows]
