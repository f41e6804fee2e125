"""ICRM and its rivals on top of TRL's RewardTrainer."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput
from trl import RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import global_then_local_main_first

from icrm_lib.generator import SIBLINGS, STATISTICS, LowerStates, columns
from icrm_lib.language_model.causal import without_adapter
from icrm_lib.language_model.checkpoints import stop_unless_finite
from icrm_lib.language_model.lower_layers import LowerLayers
from icrm_lib.language_model.positions import SequenceTooLong, refuse_to_train, trainable_length
from icrm_lib.objectives import Siblings
from icrm_lib.preferences import LABEL_KEYS, preference_rows, tokenize_pairs
from icrm_lib.reward_model.head import HeadOutput, capture_head, reward_head
from icrm_lib.reward_model.pooling import mean_rewards, note_pooling
from icrm_lib.tokenization import load_tokenizer, prepare_tokenizer, reads
from icrm_lib.training.collation import (
    REFERENCE_COLUMNS,
    STEP_COLUMNS,
    CollatorWithStates,
    DataCollatorForConsistency,
    DataCollatorWithLines,
)
from icrm_lib.training.config import ICRMConfig, statistic_of
from icrm_lib.training.loss import Batch, Share, icrm_loss
from icrm_lib.training.packing import Packing, call_packed, layout_of
from icrm_lib.training.scale import ConsistencyScale
from icrm_lib.training.text import frozen_lm_head, given_lm_head, reads_rejected, text_loss
from icrm_lib.training.tree import Tree, refuse_leaves, sibling_rewards

logger = logging.getLogger(__name__)

EXTRA_INPUTS = ("response_mask", "token_probs", "sibling_probs", "outcomes", "step_values", "reference")  # not its own


class ICRMTrainer(RewardTrainer):
    """A drop-in for `trl.RewardTrainer` with intra-trajectory consistency.

    Arguments, PEFT, accelerate, resume, callbacks and metrics are TRL's. With both of our terms off it *is* TRL's
    trainer, tokenisation included, except that an adapter always trains and saves the head. With a term on:

    - rows are tokenised by `preferences.tokenize_pairs`, which knows where the response starts: prompts and responses
      as strings (put through the chat template) or conversations, implicit prompts as conversations; `tools` and
      `chat_template_kwargs` are not used; a streaming data set must be tokenised already;
    - the tokenizer is changed in place by `tokenization.prepare_tokenizer` (padding token, end of the chat template);
    - `eval_loss` holds A / S with the S of the moment: compare checkpoints by `eval_bt_loss` or `eval_accuracy`.

    Args:
        add_logprobs: called as `add_logprobs(dataset, tokenizer)` on a tokenised dataset that lacks the columns
            `generator.columns(statistic_of(args))`, for most weightings `chosen_logprobs`, `rejected_logprobs`;
            returns it with them, e.g. through `generator.cached_logprobs`.
        lm_head: frozen output embeddings for the text term, shape (V, H); with their bias, shape (V,), as a tuple
            where the architecture has one. By default the tied embeddings, or what the checkpoint holds that the model
            was loaded from.
        failures: folder for a batch whose loss is not finite; `output_dir` by default.
        states: hidden states of all rows after the lower layers (`generator.cached_states`), which then take no part
            in training; they must have no adapter.
        Others: as in `trl.RewardTrainer`.

    Raises:
        ValueError: the data lack columns that the loss reads, or no LM head can be found for the text term.
        SequenceTooLong: a ValueError; rows are longer than the model's positions, or than its RoPE can be trained on.
        FloatingPointError: while training, a loss or gradient is nan or infinite; the batch is saved in `failures`.
    """

    _name = "ICRM"

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        args: ICRMConfig | None = None,
        data_collator: Callable | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
        add_logprobs: Callable[[Dataset, PreTrainedTokenizerBase], Dataset] | None = None,
        lm_head: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        failures: Path | None = None,
        states: LowerStates | None = None,
        **kwargs: Any,
    ):
        args = args or ICRMConfig(output_dir="icrm")
        if not isinstance(args, ICRMConfig):
            raise TypeError(f"args must be an ICRMConfig, got {type(args).__name__}; it takes the same arguments")
        self.add_logprobs = add_logprobs
        self.scale = ConsistencyScale(args.scale_decay, args.scale_start)
        if args.needs_tokens:
            processing_class = _prepared(processing_class or _tokenizer_of(model, args), args)
            data_collator = data_collator or DataCollatorForConsistency(
                pad_token_id=processing_class.pad_token_id,
                pad_to_multiple_of=args.pad_to_multiple_of,
                statistic=statistic_of(args) if args.needs_probabilities and not args.needs_siblings else None,
                siblings=args.siblings if args.needs_siblings else 0,
                shuffled=args.weighting == "shuffled",
                labels=args.needs_labels,
                steps=args.loss == "process",
                reference=args.sft_weight > 0 and args.text_form == "grm_dpo",
            )
        super().__init__(
            model,
            args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=_with_head(peft_config),
            callbacks=[*(callbacks or []), self.scale],
            **kwargs,
        )
        if not any(weight.requires_grad for weight in reward_head(self.model).parameters()):
            raise ValueError(
                "the reward head is frozen, and it is random; wrap the model with modules_to_save=['score'], or pass "
                "peft_config= and let the trainer wrap it"
            )
        self._refuse_too_long()
        if reads(self.processing_class) == "closing":
            config = without_adapter(self.model).config  # for whoever loads it: see RewardModel
            config.icrm_reads, config.icrm_max_length = "closing", args.trained_length
        note_pooling(self.model, args.pooling)
        self.lm_head = None
        if args.sft_weight > 0:
            inner = without_adapter(self.model)
            if lm_head is None:
                sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
                revision = (args.model_init_kwargs or {}).get("revision")
                head = frozen_lm_head(inner, revision=revision, sharded=sharded)
            else:
                head = given_lm_head(lm_head, inner.config)
            self.lm_head = head.to(self.accelerator.device)
        self._attention = self.model.config._attn_implementation
        if args.needs_siblings:
            refuse_leaves(self.model.config, args.form)
        if isinstance(self.data_collator, DataCollatorForConsistency):
            choices = {"padding_free": args.padding_free, "prefix_sharing": args.prefix_sharing}
            if _drops_out(self.model):
                # Another layout draws other masks: an equally good training, but not the same to the digit.
                choices = {name: choice is True for name, choice in choices.items()}
            layout = layout_of(self.model.config, self.accelerator.device.type, **choices)
            self.data_collator = dataclasses.replace(self.data_collator, **layout)
        self.failures = failures or Path(self.args.output_dir)
        if type(self.data_collator) is DataCollatorForPreference:  # TRL's own choice
            self.data_collator = DataCollatorWithLines(self.data_collator.pad_token_id, args.pad_to_multiple_of)
        self.lower = None
        if states is not None:
            if args.needs_siblings:
                raise ValueError(
                    f"states= holds the tokens of the rows, and form={args.form!r} asks for others, too; leave it out"
                )
            if self.is_fsdp_enabled or self.is_deepspeed_enabled:
                raise ValueError(
                    "states= leaves layers out, and FSDP and DeepSpeed divide them among processes; leave it out, or "
                    "train in one piece"
                )
            self.lower = LowerLayers(self.model, states.layers)
            self.data_collator = CollatorWithStates(self.data_collator, states)

    def _without_lower(self) -> AbstractContextManager:
        """Leave the lower layers out where their states are given, in the backward pass, too."""
        return self.lower.left_out() if self.lower else nullcontext()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_lower():
            return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_lower():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with self._without_lower():
            return super().predict(*args, **kwargs)

    def _refuse_too_long(self) -> None:
        """Raise where rows are longer than the model takes; those of a stream are looked at when they come."""
        evaluated = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        config, multiple = without_adapter(self.model).config, self.args.pad_to_multiple_of or 1
        for name, dataset in {"train": self.train_dataset, **evaluated}.items():
            if isinstance(dataset, Dataset):
                refuse_to_train(config, dataset, ["chosen_ids", "rejected_ids"], name=name, multiple=multiple)
        self.trainable_length = trainable_length(config, multiple)

    def _refuse_long_batch(self, attention_mask: torch.Tensor) -> None:
        limit, reason = self.trainable_length
        if limit is not None and attention_mask.shape[1] > limit:  # only then the device is waited for
            longest = int(attention_mask.sum(1).max())
            if longest > limit:
                raise SequenceTooLong(
                    f"a row of the stream has {longest} tokens, more than the {limit} that the model can be trained on "
                    f"({reason}); set max_length={limit} where rows are tokenised, or leave it out"
                )

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "line" not in self._signature_columns:
            self._signature_columns.append("line")
        if self.args.needs_tokens and "prompt_length" not in self._signature_columns:
            weights = [name for statistic in (*STATISTICS, SIBLINGS) for name in columns(statistic)]
            self._signature_columns += ["prompt_length", *weights, *LABEL_KEYS, *STEP_COLUMNS, *REFERENCE_COLUMNS]

    def _load_callback_state(self):
        super()._load_callback_state()
        counts = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
        if counts:  # TRL counts from 0 again after a resumption
            self._total_train_tokens = int(counts[-1])

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if args.needs_tokens:
            if not {"chosen_ids", "rejected_ids", "prompt_length"} <= set(get_dataset_column_names(dataset)):
                dataset = self._tokenize(dataset, processing_class, args, dataset_name)
            wanted = columns(statistic_of(args)) if args.needs_probabilities else ()
            if not set(wanted) <= set(get_dataset_column_names(dataset)):
                if self.add_logprobs is None:
                    raise ValueError(
                        f"the {dataset_name} dataset has no columns {' and '.join(wanted)}; add them with "
                        "generator.cached_logprobs, pass add_logprobs=, or set weighting='uniform'"
                    )
                with global_then_local_main_first():  # one process computes, the others read its cache
                    dataset = self.add_logprobs(dataset, processing_class)
            _check_columns(args, set(get_dataset_column_names(dataset)), dataset_name)
        prepared = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if isinstance(dataset, Dataset) and len(prepared) < len(dataset):
            dropped = len(dataset) - len(prepared)
            logger.warning("%s: %d rows over max_length=%s dropped", dataset_name, dropped, args.max_length)
        return prepared

    def _tokenize(self, dataset, processing_class, args, dataset_name):
        if not isinstance(dataset, Dataset):
            raise ValueError(
                f"the {dataset_name} dataset streams and is not tokenised; tokenise it with preferences.tokenize_pairs"
            )
        labels = [name for name in LABEL_KEYS if args.needs_labels and name in dataset.column_names]
        # Rows are known by their line; with labels to carry it must be their place in the data, not a number given.
        known = dataset.remove_columns("line") if labels and "line" in dataset.column_names else dataset
        rows, read = preference_rows(known)
        if "margin" in rows.column_names and "margin" not in dataset.column_names:
            rows = rows.remove_columns("margin")  # derived from ratings: TRL would not have subtracted it
        tokenized, report = tokenize_pairs(rows, processing_class, max_length=args.max_length, report=read)
        for name in labels:
            values = dataset[name][:]
            tokenized = tokenized.add_column(name, [values[line - 1] for line in tokenized["line"]])
        if report.refused or report.alarms():
            logger.warning("%s: %s", dataset_name, report)
        return tokenized

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self.accelerator.num_processes > 1 and self.accelerator.gradient_state.end_of_dataloader:
            # accelerate fills the last batch of an epoch with rows from its beginning, so that every process has one.
            # How many are real it forgets after a resumption in the middle of the epoch.
            remainder = len(self.train_dataset) % (self.args.train_batch_size * self.accelerator.num_processes)
            if remainder and not self.args.dataloader_drop_last:
                batches[-1]["epoch_remainder"] = remainder
        return batches, items

    def training_step(self, model, inputs, num_items_in_batch=None):
        batch = dict(inputs)  # the loss takes entries out
        loss = super().training_step(model, inputs, num_items_in_batch)
        stop_unless_finite(self, loss, batch, self.failures)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        args = self.args
        inputs.pop("line", None)
        if self.lower:
            self.lower.give(inputs.pop("states"))
        self._refuse_long_batch(inputs["attention_mask"])
        remainder = inputs.pop("epoch_remainder", None)
        if args.is_trl and remainder is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        extra = {name: inputs.pop(name) for name in EXTRA_INPUTS if name in inputs}
        packed = {name: inputs.pop(name) for name in Packing._fields if name in inputs}
        if args.needs_siblings:
            tree = Tree(**{name: inputs.pop(name) for name in Tree._fields})
            with torch.no_grad():  # they are targets
                rewards = sibling_rewards(model, tree, self._attention)
            extra["siblings"] = Siblings(rewards, extra.pop("sibling_probs"))
        size = len(inputs["input_ids"]) // 2
        text_rows = 2 * size if reads_rejected(args) else size
        with capture_head(self.model) as head:
            call = call_packed(model, head, packed, text_rows, self._attention) if packed else model
            if args.pooling == "mean":
                call = _pooled(call, head, extra["response_mask"])
            trl_loss, outputs = super().compute_loss(call, inputs, return_outputs=True)
        # Rows that only fill up an epoch stay in the forward pass, which all processes must enter, and leave the loss.
        pairs, share = self._real_pairs(size, remainder)
        extra |= {"closing": outputs.logits.squeeze(-1), "rewards": head.rewards}
        batch = Batch(
            margin=inputs["margin"][:pairs] if "margin" in inputs else None,
            **{name: _of_pairs(value, pairs) for name, value in extra.items()},
        )

        def text() -> torch.Tensor:
            hidden = _of_pairs(head.hidden, pairs) if reads_rejected(args) else head.hidden[:pairs]
            return text_loss(hidden, _of_pairs(inputs["input_ids"], pairs), batch, self.lm_head, args)

        loss, parts = icrm_loss(
            batch,
            args,
            self.scale,
            share,
            trl_loss=trl_loss if remainder is None else None,
            text_loss=text,
            training=self.model.training,
        )
        self._note(parts)
        return (loss, outputs) if return_outputs else loss

    def _real_pairs(self, pairs: int, remainder: int | None) -> tuple[int, Share]:
        """How many of this process's pairs count, at least one, and their share in the step's loss."""
        processes, factor = self.accelerator.num_processes, 1.0
        if remainder is not None:
            own = min(max(remainder - self.accelerator.process_index * self.args.train_batch_size, 0), pairs)
            pairs, factor = max(own, 1), own * processes / remainder
        return pairs, Share(factor, processes, lambda value: self.accelerator.reduce(value, "sum"))

    def _note(self, metrics: dict[str, torch.Tensor]) -> None:
        # One transfer from the device for all of them.
        values = torch.stack([value.detach().float() for value in metrics.values()])
        values = self.accelerator.reduce(values, "mean").tolist()
        mode = "train" if self.model.training else "eval"
        for name, value in zip(metrics, values, strict=True):
            self._metrics[mode][name].append(value)


def _pooled(call: Callable, head: HeadOutput, response_mask: torch.Tensor) -> Callable:
    """A stand-in for the model whose reward of a response is the mean over its tokens."""

    def pooled(**inputs: Any) -> SequenceClassifierOutput:
        call(**inputs)
        return mean_rewards(head.rewards, response_mask)

    return pooled


def _drops_out(model: torch.nn.Module) -> bool:
    """Whether anything is dropped out in training: by a module, or in the attention, which has none."""
    attention = model.config.get_text_config().to_dict().get("attention_dropout") or 0.0
    return attention > 0 or any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())


def _of_pairs(value: torch.Tensor | Siblings, pairs: int) -> torch.Tensor | Siblings:
    """The first `pairs` rows of each half of a tensor whose first axis is 2B."""
    if isinstance(value, Siblings):
        return Siblings(*(_of_pairs(part, pairs) for part in value))
    size = len(value) // 2
    return value if pairs == size else torch.cat([value[:pairs], value[size : size + pairs]])


def _check_columns(args: ICRMConfig, present: set[str], dataset_name: str) -> None:
    needed = {
        columns(statistic_of(args)): args.needs_probabilities,
        LABEL_KEYS: args.needs_labels and present & set(LABEL_KEYS),  # both or none
        STEP_COLUMNS: args.loss == "process",
        REFERENCE_COLUMNS: args.text_form == "grm_dpo" and args.sft_weight,
    }
    for names, wanted in needed.items():
        missing = [name for name in names if name not in present]
        if wanted and missing:
            raise ValueError(
                f"the {dataset_name} dataset has no columns {' and '.join(missing)}, which this loss reads (see "
                "ICRMConfig); add them to rows from preferences.tokenize_pairs, or choose another loss, weighting or "
                "text_form"
            )


def _with_head(peft_config: PeftConfig | None) -> PeftConfig | None:
    """Return the configuration with the reward head among the modules that are trained and saved."""
    if peft_config is None or "score" in (peft_config.modules_to_save or []):
        return peft_config
    return dataclasses.replace(peft_config, modules_to_save=[*(peft_config.modules_to_save or []), "score"])


def _prepared(tokenizer: PreTrainedTokenizerBase, args: ICRMConfig) -> PreTrainedTokenizerBase:
    # TRL applies these two after the collator is built; here the collator and the model must agree on the padding.
    if args.eos_token is not None:
        tokenizer.eos_token = args.eos_token
    if args.pad_token is not None:
        tokenizer.pad_token = args.pad_token
    tokenizer = prepare_tokenizer(tokenizer)
    if args.pad_token not in (None, tokenizer.pad_token):
        raise ValueError(
            f"pad_token={args.pad_token!r} closes a turn, so the reward would be read one token too early; leave "
            f"pad_token out ({tokenizer.pad_token!r} is taken) or name another"
        )
    return tokenizer


def _tokenizer_of(model: str | PreTrainedModel, args: ICRMConfig) -> PreTrainedTokenizerBase:
    name = model if isinstance(model, str) else model.config._name_or_path
    revision = (args.model_init_kwargs or {}).get("revision")
    if args.trust_remote_code:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)
    return load_tokenizer(name, revision=revision)
