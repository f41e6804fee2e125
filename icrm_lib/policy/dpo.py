"""Training a policy on preference pairs by DPO."""

from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig, DPOTrainer

from icrm_lib.language_model.causal import lora_config
from icrm_lib.language_model.checkpoints import LogFile
from icrm_lib.policy.arguments import starting_policy, trainer_arguments
from icrm_lib.profiles import RewardModelSettings


def train_dpo(
    base_model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    settings: RewardModelSettings,
    *,
    folder: Path,
    seed: int,
    beta: float = 0.1,
) -> DPOTrainer:
    """Train a policy by DPO (arXiv 2305.18290) with LoRA; the reference is the base model, the adapter switched off.

    Args:
        base_model: local directory or hub id of a causal language model.
        tokenizer: its tokenizer, prepared.
        pairs: `preferences.load_preferences` output: `prompt` (conversation), `chosen`, `rejected` (text).
        settings: LoRA, learning rate, epochs and batch size are read.
        folder: for `log.jsonl`.
        seed: of LoRA and data order.
        beta: strength of the pull towards the reference, > 0.

    Returns:
        the finished trainer; `trainer.model` is the PEFT-wrapped policy.

    Raises:
        ValueError: no pair.
    """
    if not len(pairs):
        raise ValueError("no pairs to train on; a reward that is the same for all responses gives none")
    args = DPOConfig(
        **trainer_arguments(settings, folder, seed),
        beta=beta,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        max_length=None,
    )
    trainer = DPOTrainer(
        starting_policy(base_model),
        args=args,
        train_dataset=_conversations(pairs),
        processing_class=tokenizer,
        peft_config=lora_config(settings),
        callbacks=[LogFile(folder / "log.jsonl")],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def _conversations(pairs: Dataset) -> Dataset:
    def turn(row: dict) -> dict:
        return {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}

    rows = [{"prompt": row["prompt"], **turn(row)} for row in pairs.select_columns(["prompt", "chosen", "rejected"])]
    return Dataset.from_list(rows)
