"""The language model that everything starts from; "testbed" and "scratch" are trained here."""

from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
from datasets import Dataset

from icrm_lib import records
from icrm_lib.generator import both_sides
from icrm_lib.lab.artefacts import model_path
from icrm_lib.lab.data import Data
from icrm_lib.language_model.scratch import small_llama, train_language_model


class BaseModel:
    """The base model of a profile's data."""

    def __init__(self, data: Data):
        self.data, self.settings = data, data.profile.base_model

    @cached_property
    def path(self) -> str:
        """Directory or hub id."""
        data, name = self.data, self.settings.name
        if name not in ("testbed", "scratch"):
            return model_path(name)
        key = {"settings": asdict(self.settings), "seed": data.seed, "max_length": data.profile.data.max_length}
        if name == "testbed":
            key["language"] = data.language.config()
        else:
            key["texts"] = records.fingerprint(data.training_texts())
        return str(data.artefacts.get("base_model", key, self._train))

    def _train(self, folder: Path) -> None:
        data, settings, tokenizer = self.data, self.settings, self.data.tokenizer
        size = {"hidden_size": settings.hidden_size, "layers": settings.layers, "heads": settings.heads}
        model = small_llama(tokenizer, **size, max_length=data.profile.data.max_length, seed=data.seed)
        train_language_model(
            model,
            testbed_corpus(data, settings.steps * settings.batch_size) if settings.name == "testbed" else _texts(data),
            folder=folder,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=data.seed,
            steps=settings.steps,
        )
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))


def _texts(data: Data) -> Dataset:
    return both_sides(data.tokenized["train"]).map(lambda row: {"prompt_length": 1})  # the prompt is text to learn, too


def testbed_corpus(data: Data, count: int) -> Dataset:
    """Return at least `count` unlabelled responses, as many to every prompt of the testbed, mixed."""
    language, tokenizer = data.language, data.tokenizer
    rng = np.random.default_rng([data.seed, 1000])
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
