"""Fit the generator on the texts of the pairs."""

from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from peft import get_peft_model
from transformers import PreTrainedModel

from icrm_lib import runtime
from icrm_lib.language_model.causal import load_causal_lm, lora_config
from icrm_lib.language_model.scratch import train_language_model
from icrm_lib.profiles import GeneratorSettings


def fit_generator(
    base_model: str | Path,
    dataset: Dataset,
    settings: GeneratorSettings,
    folder: Path,
    *,
    seed: int,
    checkpoints: Path | None = None,
) -> PreTrainedModel:
    """Fit the generator: LoRA, next-token loss on chosen and rejected responses alike, each length-normalised.

    Args:
        base_model: local directory or hub id of a causal language model.
        dataset: tokenised pairs (`chosen_ids`, `rejected_ids`, `prompt_length`).
        settings: LoRA and optimiser settings.
        folder: for the log.
        seed: of LoRA's initialisation and the order of the data.
        checkpoints: folder of checkpoints, see `language_model.scratch.train_language_model`.

    Returns:
        the merged model, frozen. (The reference divides the rejected term by the chosen length, a slip; here each
        response is divided by its own.)
    """
    runtime.seed_everything(seed)
    model = load_causal_lm(base_model, dtype=torch.float32 if runtime.device() == "cpu" else torch.bfloat16)
    trainer = train_language_model(
        get_peft_model(model, lora_config(settings)),
        both_sides(dataset),
        folder=folder,
        pad_token_id=model.config.get_text_config().pad_token_id or 0,  # padding is masked out, so any id does
        checkpoints=checkpoints,
        save_steps=settings.save_steps,
        per_device_train_batch_size=2 * settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        gradient_checkpointing=settings.gradient_checkpointing,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        seed=seed,
    )
    return trainer.model.merge_and_unload().eval().requires_grad_(False)


def both_sides(dataset: Dataset) -> Dataset:
    """Turn pairs into sequences: every chosen one, then every rejected one. Columns `input_ids`, `prompt_length`."""
    sides = [
        dataset.select_columns([name, "prompt_length"]).rename_column(name, "input_ids")
        for name in ("chosen_ids", "rejected_ids")
    ]
    return concatenate_datasets(sides)
