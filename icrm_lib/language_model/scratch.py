"""Small language models made here: tokenizer, random weights, next-token training (the generator's, too)."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from icrm_lib import runtime
from icrm_lib.language_model.causal import (
    decoder_states,
    padded,
    refuse_transformed_logits,
    token_nll,
    without_adapter,
)
from icrm_lib.language_model.checkpoints import (
    LogFile,
    SealedCheckpoints,
    data_fingerprint,
    newest_checkpoint,
    refuse_non_finite_weights,
    saving,
    stop_unless_finite,
)
from icrm_lib.language_model.lm_head import lm_head_of
from icrm_lib.language_model.positions import refuse_to_train

SCRATCH_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def scratch_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template on the given texts.

    Args:
        texts: prompts and responses.
        vocabulary: number of tokens, at least 300 (256 bytes and the special tokens).

    Raises:
        ValueError: `vocabulary` is too small.
    """
    if vocabulary < 300:
        raise ValueError(f"vocabulary must be at least 300 (256 bytes and the special tokens), got {vocabulary}")
    special = ["<pad>", "<bos>", "<eos>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens=special[3:],
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = SCRATCH_TEMPLATE
    return fast


def small_llama(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, layers: int, heads: int, max_length: int, seed: int
) -> LlamaForCausalLM:
    """Return a randomly initialised Llama of the given size with tied embeddings.

    Args:
        tokenizer: decides the vocabulary and the special ids.
        hidden_size: width, a multiple of `heads`.
        layers: decoder layers.
        heads: attention heads.
        max_length: longest sequence in tokens.
        seed: of the initialisation.
    """
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


class LanguageModelTrainer(Trainer):
    """Next-token training on the tokens from `prompt_length` on.

    Rows: `input_ids` (list of int), `prompt_length` (int >= 1). The loss is the mean over the sequences of each
    one's mean token loss, so that a long response weighs as much as a short one.
    """

    def __init__(self, model, *, pad_token_id: int, failures: Path | None = None, **kwargs):
        self.pad_token_id = pad_token_id
        super().__init__(model=model, data_collator=self._collate, **kwargs)
        self.failures = failures or Path(self.args.output_dir)  # for a batch whose loss is not finite
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
        head = lm_head_of(self.causal_lm)
        targets = inputs["input_ids"][:, 1:][predicted]
        losses = token_nll(hidden[:, :-1][predicted], head.weight, targets, bias=head.bias)
        weights = (predicted / predicted.sum(1, keepdim=True).clamp(min=1))[predicted] / len(predicted)
        return (losses.float() * weights).sum()


def train_language_model(
    model: PreTrainedModel,
    dataset: Dataset,
    *,
    folder: Path,
    pad_token_id: int,
    checkpoints: Path | None = None,
    save_steps: int = 0,
    **arguments: Any,
) -> LanguageModelTrainer:
    """Train a causal language model (or a PEFT-wrapped one) on tokenised sequences; writes `log.jsonl`.

    Args:
        model: the model; trained in place.
        dataset: rows `input_ids`, `prompt_length`.
        folder: for the log.
        pad_token_id: padding id.
        checkpoints: folder of checkpoints, of this training alone; one that is there already is resumed from.
        save_steps: a checkpoint every so many steps; 0 for none.
        arguments: of `transformers.TrainingArguments`, JSON-able: batch size, learning rate (the peak of a cosine with
            3 % warm-up), `max_steps` or `num_train_epochs`, `seed`, ...

    Returns:
        the finished trainer.

    Raises:
        positions.SequenceTooLong: rows that the model cannot be trained on.
    """
    refuse_to_train(model.config, dataset, ["input_ids"], name="training")
    folder.mkdir(parents=True, exist_ok=True)
    args = TrainingArguments(
        **{"output_dir": str(folder), **saving(checkpoints, save_steps), **arguments},
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        report_to="none",
        use_cpu=runtime.device() == "cpu",
        bf16=runtime.device() == "cuda",
        remove_unused_columns=False,
        disable_tqdm=not runtime.watched(),
    )
    key = arguments
    if checkpoints:
        data = data_fingerprint(dataset, ("input_ids", "prompt_length"))
        key = arguments | {"folder": checkpoints.name, "data": data, "model": model.config.to_json_string()}
    trainer = LanguageModelTrainer(
        model,
        pad_token_id=pad_token_id,
        failures=checkpoints or folder,
        args=args,
        train_dataset=dataset,
        callbacks=[LogFile(folder / "log.jsonl"), SealedCheckpoints(key)],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log line; the log file keeps them
    trainer.train(resume_from_checkpoint=newest_checkpoint(checkpoints, key) if checkpoints else None)
    refuse_non_finite_weights(trainer.model)
    return trainer
