"""Next-token training of a causal language model, whole or by LoRA."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from icrm_lib import runtime
from icrm_lib.language_model.batches import padded
from icrm_lib.language_model.causal import decoder_states, refuse_transformed_logits, token_nll, without_adapter
from icrm_lib.language_model.checkpoints import (
    LogFile,
    SealedCheckpoints,
    newest_checkpoint,
    refuse_non_finite_weights,
    saving,
    stop_unless_finite,
)
from icrm_lib.language_model.fingerprints import data_fingerprint


class LanguageModelTrainer(Trainer):
    """Next-token training on the tokens from `prompt_length` on.

    Rows: `input_ids` (list of int), `prompt_length` (int >= 1). The loss is the mean over the sequences of each
    one's mean token loss, so that a long response weighs as much as a short one.
    """

    def __init__(self, model, *, pad_token_id: int, **kwargs):
        self.pad_token_id = pad_token_id
        super().__init__(model=model, data_collator=self._collate, **kwargs)
        self.failures = Path(self.args.output_dir)  # for a batch whose loss is not finite
        self.causal_lm = without_adapter(self.model)
        refuse_transformed_logits(self.causal_lm.config)

    def training_step(self, model, inputs, num_items_in_batch=None):
        batch = dict(inputs)
        loss = super().training_step(model, inputs, num_items_in_batch)
        stop_unless_finite(self, loss, batch, self.failures)
        return loss

    def _collate(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        batch = padded([row["input_ids"] for row in rows], self.pad_token_id)
        return batch | {"prompt_length": torch.tensor([row["prompt_length"] for row in rows])}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        prompt_length = inputs.pop("prompt_length")
        hidden = decoder_states(model, self.causal_lm, **inputs)
        positions = torch.arange(1, hidden.shape[1], device=hidden.device)
        predicted = (inputs["attention_mask"][:, 1:] == 1) & (positions >= prompt_length[:, None])
        head = self.causal_lm.get_output_embeddings().weight
        losses = token_nll(hidden[:, :-1][predicted], head, inputs["input_ids"][:, 1:][predicted])
        weights = (predicted / predicted.sum(1, keepdim=True).clamp(min=1))[predicted] / len(predicted)
        loss = (losses.float() * weights).sum()
        return (loss, {"loss": loss.detach()}) if return_outputs else loss


def train_language_model(
    model: PreTrainedModel,
    dataset: Dataset,
    *,
    folder: Path,
    pad_token_id: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    steps: int = -1,
    epochs: float = 1.0,
    accumulation: int = 1,
    gradient_checkpointing: bool = False,
    checkpoints: Path | None = None,
    save_steps: int = 0,
) -> LanguageModelTrainer:
    """Train a causal language model (or a PEFT-wrapped one) on tokenised sequences; writes `log.jsonl`.

    Args:
        model: the model; trained in place.
        dataset: rows `input_ids`, `prompt_length`.
        folder: for the log.
        pad_token_id: padding id.
        batch_size: sequences a step.
        learning_rate: peak of the cosine schedule (3 % warm-up).
        seed: of order and dropout.
        steps: number of steps; -1 means `epochs` decide.
        epochs: passes over the data.
        accumulation: batches a step.
        gradient_checkpointing: compute activations twice instead of keeping them.
        checkpoints: folder of checkpoints, of this training alone; one that is there already is resumed from.
        save_steps: a checkpoint every so many steps; 0 for none.

    Returns:
        the finished trainer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    args = TrainingArguments(
        **{"output_dir": str(folder), **saving(checkpoints, save_steps)},
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        gradient_checkpointing=gradient_checkpointing,
        max_steps=steps,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        report_to="none",
        seed=seed,
        use_cpu=runtime.device() == "cpu",
        bf16=runtime.device() == "cuda",
        remove_unused_columns=False,
        disable_tqdm=not runtime.watched(),
    )
    key = {"steps": steps, "epochs": epochs, "batch": [batch_size, accumulation], "rate": learning_rate, "seed": seed}
    if checkpoints:
        data = data_fingerprint(dataset, ("input_ids", "prompt_length"))
        key |= {"folder": checkpoints.name, "data": data, "model": model.config.to_json_string()}
    callbacks = [LogFile(folder / "log.jsonl"), SealedCheckpoints(key)]
    trainer = LanguageModelTrainer(
        model, pad_token_id=pad_token_id, args=args, train_dataset=dataset, callbacks=callbacks
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log line; the log file keeps them
    trainer.failures = checkpoints or folder
    trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints, key) if checkpoints else None)
    refuse_non_finite_weights(trainer.model)
    return trainer
