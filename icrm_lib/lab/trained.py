"""The reward model of a method, trained on a workspace's pairs when it is missing."""

from dataclasses import asdict
from pathlib import Path

from datasets import Dataset

from icrm_lib import records
from icrm_lib.lab.data import Data
from icrm_lib.lab.generator import Generator
from icrm_lib.language_model.checkpoints import data_fingerprint, model_fingerprint
from icrm_lib.methods import method_settings
from icrm_lib.preferences import LABEL_KEYS
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.reward_model import RewardModel
from icrm_lib.training.config import reads_generator, statistic_of
from icrm_lib.training.fit import train_reward_model, unsharded_model


def trained_folder(generator: Generator, method: str, seed: int) -> Path:
    """Return the directory of the reward model of a method and seed; see `Workspace.reward_model_folder`.

    Args:
        generator: weights the pairs where the method reads weights; its data and base model are trained on.
        method: of `METHODS`.
        seed: of head, LoRA and data order.
    """
    data, profile = generator.data, generator.data.profile
    settings = method_settings(profile.reward_model, method)
    needs_generator = reads_generator(settings)
    train = _training_pairs(data, method, settings)
    base_model = generator.base_model.path
    key = {
        "base_model": model_fingerprint(base_model),
        "settings": asdict(settings),
        "pairs": data_fingerprint(train),
        "margin": records.fingerprint(train["margin"][:]) if "margin" in train.column_names else None,
        "generator": [asdict(profile.generator), generator.key()] if needs_generator else None,
        "seeds": [data.seed, seed],
    }
    if labels := [name for name in LABEL_KEYS if name in train.column_names]:
        key["labels"] = records.fingerprint([train[name][:] for name in labels])

    def make(folder: Path, checkpoints: Path) -> None:
        rows = generator.add_logprobs(train, statistic_of(settings)) if needs_generator else train
        options = {"folder": folder, "seed": seed, "checkpoints": checkpoints}
        trainer = train_reward_model(base_model, data.tokenizer, rows, settings, **options)
        model = unsharded_model(trainer, settings, folder)
        if model is not None:
            RewardModel(model, data.tokenizer).save_pretrained(folder)

    return data.artefacts.get("reward_model", key, make, trains=True, together=True)


def _training_pairs(data: Data, method: str, settings: RewardModelSettings) -> Dataset:
    """The tokenised training pairs that a method learns from, with the columns that it reads."""
    train = data.tokenized["train"]
    if settings.loss == "bradley_terry" and LABEL_KEYS[0] in train.column_names:
        labels = zip(*(train[name][:] for name in LABEL_KEYS), strict=True)
        train = train.select([row for row, (chosen, rejected) in enumerate(labels) if chosen > rejected])
    if settings.margin and "margin" not in train.column_names:
        raise ValueError(
            f"{method} subtracts the difference of ratings, and not all pairs of {data.profile.data.preferences!r} "
            "have ratings; take data that have, or another method"
        )
    if "margin" in train.column_names and not settings.margin:
        train = train.remove_columns("margin")  # TRL subtracts a margin column whenever it sees one
    return train
