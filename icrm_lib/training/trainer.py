"""ICRM and its rivals on top of TRL's RewardTrainer: losses of the closing token, consistency term, text terms."""

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_callback import ExportableState
from transformers.utils.hub import cached_file
from trl import RewardConfig, RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import global_then_local_main_first

from icrm_lib.generator.cache import STATISTICS, columns
from icrm_lib.language_model.causal import refuse_transformed_logits, token_nll, without_adapter
from icrm_lib.language_model.checkpoints import stop_unless_finite
from icrm_lib.objectives import (
    CENTERINGS,
    FORMS,
    bradley_terry_loss,
    consistency_terms,
    grm_text_loss,
    outcome_loss,
    pointwise_consistency_terms,
    positive_reward_penalty,
    process_loss,
)
from icrm_lib.objectives import WEIGHTINGS as TERM_WEIGHTINGS
from icrm_lib.preferences import preference_rows, tokenize_pairs
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.reward_model.head import HeadOutput, capture_head, reward_head
from icrm_lib.runtime import nearest
from icrm_lib.tokenization import prepare_tokenizer
from icrm_lib.training.collation import (
    LABEL_COLUMNS,
    REFERENCE_COLUMNS,
    STEP_COLUMNS,
    DataCollatorForConsistency,
    DataCollatorWithLines,
)

logger = logging.getLogger(__name__)

LOSSES = ("bradley_terry", "outcome", "process")
TEXT_FORMS = ("mean_nll", "grm_sft", "grm_dpo_noref", "grm_dpo")
# Weights that the data bring (see `generator.STATISTICS`) or the collator arranges; the term takes them as they are.
STATISTIC_OF = {"entropy": "negentropies", "top1_margin": "logmargins"}
WEIGHTINGS = (*TERM_WEIGHTINGS, "shuffled", *STATISTIC_OF)
EXTRA_INPUTS = ("response_mask", "token_probs", "outcomes", "step_values", "reference", "pack")  # not for the model


@dataclass
class ICRMConfig(RewardConfig):
    """TRL's `RewardConfig` and the settings of ICRM (arXiv 2506.09096) and of what it is compared with.

    The loss is consistency_weight * A / S + (1 - consistency_weight) * L + sft_weight * L_text, with L the loss of the
    closing token. For the GRM forms of the text term L is further multiplied by 1 - sft_weight, as GRM does. With
    `consistency_weight=0` and `sft_weight=0` and the defaults of the rest training is TRL's, to the bit.

    Args:
        consistency_weight: lambda, in [0, 1). The paper: 0.1.
        sft_weight: weight of the text term, >= 0. For "mean_nll" the paper adds the term with weight 1 but scales its
            gradient into the backbone by 0.001; with a frozen head both are one. For the GRM forms it is alpha (0.01).
        loss: L. "bradley_terry" (margin and centring are TRL's); "outcome", a cross-entropy with a label per response
            (columns `chosen_label`, `rejected_label` in {0, 1}; without them chosen is 1 and rejected 0); "process",
            a cross-entropy with a value per token (columns `chosen_step_values`, `rejected_step_values`, one entry in
            [0, 1] a response token, nan where there is none), averaged over all labelled tokens.
        label_smoothing: e of `objectives.bradley_terry_loss`, in [0, 0.5).
        positive_weight: weight of `objectives.positive_reward_penalty`, >= 0.
        text_form: "mean_nll", the mean token loss of the chosen response; "grm_sft", "grm_dpo_noref", "grm_dpo", see
            `objectives.grm_text_loss` ("grm_dpo" needs `chosen_reference`, `rejected_reference`: the reference
            model's summed log-probabilities).
        text_beta: beta of the GRM forms.
        weighting: of `objectives.consistency_terms`, or "shuffled" (the probabilities of a response, permuted by an
            order fixed for the response), "entropy" (exp of minus the generator's entropy before the token),
            "top1_margin" (probability of its most probable token minus that of the second).
        form, centering: see `objectives.consistency_terms`; centring plays no part for "outcome" and "process".
        scale_decay: decay of the running scale S, in [0, 1).
        scale_start: S before the first step, > 0.
        padding_free: run a batch as few rows, each filled with whole responses, instead of one padded row a response.
            Losses and gradients are the same; time and memory go to real tokens. For decoders of `transformers` that
            keep packed sequences apart by their position ids (Llama, Gemma, Qwen 2 and 3, Mistral, ...).
    """

    consistency_weight: float = field(default=0.1, metadata={"help": "lambda of the consistency term, in [0, 1)."})
    sft_weight: float = field(default=0.001, metadata={"help": "Weight of the text term."})
    loss: str = field(default="bradley_terry", metadata={"help": "Loss of the closing token, or of labelled tokens."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Assumed share of wrong preferences, in [0, 0.5)."})
    positive_weight: float = field(default=0.0, metadata={"help": "Weight of the positive-reward penalty."})
    text_form: str = field(default="mean_nll", metadata={"help": "Form of the text term."})
    text_beta: float = field(default=0.1, metadata={"help": "beta of the GRM forms of the text term."})
    weighting: str = field(default="probability", metadata={"help": "Weights of the consistency term."})
    form: str = field(default="mutual_bce", metadata={"help": "Form of the consistency term."})
    centering: str = field(default="response", metadata={"help": "What the token rewards are centred on."})
    scale_decay: float = field(default=0.95, metadata={"help": "Decay of the running scale S."})
    scale_start: float = field(default=0.5, metadata={"help": "S before the first step."})
    padding_free: bool = field(default=False, metadata={"help": "Pack responses into full rows."})

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.consistency_weight < 1.0:
            raise ValueError(f"consistency_weight must be in [0, 1), got {self.consistency_weight}")
        options = {"weighting": WEIGHTINGS, "form": FORMS, "centering": CENTERINGS}
        for name, known in (options | {"loss": LOSSES, "text_form": TEXT_FORMS}).items():
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; {nearest(getattr(self, name), list(known))}")
        if self.sft_weight < 0.0 or self.positive_weight < 0.0:
            raise ValueError(f"sft_weight, positive_weight must be >= 0: {self.sft_weight}, {self.positive_weight}")
        if self.text_form != "mean_nll" and self.sft_weight >= 1.0:
            raise ValueError(f"sft_weight must be in [0, 1) for {self.text_form}, got {self.sft_weight}")
        if not self.text_beta > 0.0:
            raise ValueError(f"text_beta must be > 0, got {self.text_beta}")
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        of_pairs = ("label_smoothing", "positive_weight", "center_rewards_coefficient")
        if self.loss != "bradley_terry" and any(getattr(self, name) for name in of_pairs):
            raise ValueError(f"{', '.join(of_pairs)} go with loss='bradley_terry', not {self.loss!r}; leave them out")
        if not 0.0 <= self.scale_decay < 1.0 or self.scale_start <= 0.0:
            raise ValueError(
                f"scale_decay must be in [0, 1) and scale_start > 0, got {self.scale_decay} and {self.scale_start}"
            )
        if self.padding_free and self.centering == "positions":
            raise ValueError("centering='positions' averages over padding, and padding_free has none; drop one of them")

    @property
    def needs_probabilities(self) -> bool:
        """Whether training reads the generator's log-probabilities."""
        return reads_generator(self)

    @property
    def needs_labels(self) -> bool:
        """Whether training reads a label per response."""
        return self.loss == "outcome" or (self.loss == "process" and self.consistency_weight > 0)

    @property
    def needs_tokens(self) -> bool:
        """Whether training looks at more than the reward of the closing token, or at labels of its own, or packs."""
        terms = self.consistency_weight > 0 or self.sft_weight > 0
        return terms or self.loss != "bradley_terry" or self.padding_free

    @property
    def is_trl(self) -> bool:
        """Whether the loss is TRL's own."""
        return not (self.needs_tokens or self.label_smoothing or self.positive_weight)


def reads_generator(settings: "ICRMConfig | RewardModelSettings") -> bool:
    """Say whether a training with these settings needs the generator's log-probabilities."""
    return settings.consistency_weight > 0 and settings.weighting != "uniform"


def statistic_of(settings: "ICRMConfig | RewardModelSettings") -> str:
    """Return which of `generator.STATISTICS` the weights of the consistency term are."""
    return STATISTIC_OF.get(settings.weighting, "logprobs")


class ConsistencyScale(TrainerCallback, ExportableState):
    """S, the exponential moving average of W: S <- d S + (1 - d) W, once a training forward pass, before use.

    As a stateful callback it lies in `trainer_state.json`, so every checkpoint carries it and resuming restores it.

    Args:
        decay: d.
        start: S before the first step.
    """

    def __init__(self, decay: float = 0.95, start: float = 0.5):
        self.decay, self.start = decay, start
        self.value = torch.tensor(start)  # a tensor from the start: a resumed run then rounds as an unbroken one

    def update(self, scale: torch.Tensor) -> torch.Tensor:
        """Mix in one batch's W (a scalar tensor, already averaged over the processes) and return the new S."""
        self.value = self.decay * self.value.to(scale.device) + (1.0 - self.decay) * scale
        return self.value

    def state(self) -> dict:
        return {"args": {"decay": self.decay, "start": self.start}, "attributes": {"value": float(self.value)}}

    def on_train_begin(self, args, state, control, **kwargs):
        # A fresh run starts afresh; a resumed one goes on with what its checkpoint holds.
        self.value = torch.tensor(self.start)
        if state.global_step > 0:
            stored = state.stateful_callbacks.get(type(self).__name__)
            if stored is None:
                raise ValueError(
                    "the checkpoint holds no consistency scale S, so it was not written by ICRMTrainer; resume from "
                    "one that was, or start afresh"
                )
            self.value = torch.tensor(stored["attributes"]["value"])


def _call_packed(model: torch.nn.Module, head: HeadOutput, pack: torch.Tensor, hidden_rows: int) -> Callable:
    """Return a stand-in for `model` that runs a padded batch packed and answers as if it had been padded.

    What `head` captured is brought into the padded form too, the hidden states for the first `hidden_rows` rows only.
    """

    def call(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        size, width = input_ids.shape
        filled = pack >= 0
        ids = input_ids.flatten()[pack.clamp(min=0)]
        # A token's column is its position; an empty place is a sequence of its own.
        model(input_ids=ids, position_ids=torch.where(filled, pack % width, 0), use_cache=False)
        source = torch.where(filled, pack, size * width).flatten()  # what is empty goes to one place too many
        here = torch.arange(pack.numel(), device=pack.device)
        where = torch.zeros(size * width + 1, dtype=torch.long, device=pack.device).scatter(0, source, here)
        where = where[:-1].view(size, width)  # at padding arbitrary; masked by all who read it
        head.rewards = head.rewards.flatten()[where]
        head.hidden = head.hidden.flatten(0, 1)[where[:hidden_rows]]
        closing = head.rewards.gather(1, attention_mask.sum(1, keepdim=True) - 1)
        return SequenceClassifierOutput(logits=closing)

    return call


def _of_pairs(value: torch.Tensor, pairs: int) -> torch.Tensor:
    """The first `pairs` rows of each half of a tensor whose first axis is 2B."""
    size = len(value) // 2
    return value if pairs == size else torch.cat([value[:pairs], value[size : size + pairs]])


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
        lm_head: frozen output embeddings for the text term. Shape: (V, H). By default the tied embeddings, or the
            `lm_head.weight` of the checkpoint the model was loaded from.
        Others: as in `trl.RewardTrainer`.

    Raises:
        ValueError: the data lack columns that the loss reads, or no LM head can be found for the text term.
        FloatingPointError: while training, a loss or gradient is nan or infinite; the batch is saved in `output_dir`.
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
        lm_head: torch.Tensor | None = None,
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
                statistic=statistic_of(args) if args.needs_probabilities else None,
                shuffled=args.weighting == "shuffled",
                labels=args.needs_labels,
                steps=args.loss == "process",
                reference=args.sft_weight > 0 and args.text_form == "grm_dpo",
                padding_free=args.padding_free,
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
        self.lm_head = self._find_lm_head(lm_head) if args.sft_weight > 0 else None
        if args.padding_free and "flash" in (self.model.config._attn_implementation or ""):
            self.data_collator.one_row = True  # it keeps packed sequences apart in a batch of one row only
        self.failures = Path(self.args.output_dir)  # for a batch whose loss is not finite
        if type(self.data_collator) is DataCollatorForPreference:  # TRL's own choice
            self.data_collator = DataCollatorWithLines(self.data_collator.pad_token_id, args.pad_to_multiple_of)

    def _find_lm_head(self, given: torch.Tensor | None) -> torch.Tensor | None:
        # None stands for tied embeddings that stay as they are: no copy. Trained ones are copied before they move, and
        # FSDP and ZeRO-3 leave every process a slice, so there the whole matrix is read from the checkpoint.
        model = without_adapter(self.model)
        refuse_transformed_logits(model.config)
        embeddings = model.get_input_embeddings().weight
        tied = model.config.get_text_config().tie_word_embeddings
        if given is None and tied and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return embeddings.detach().clone() if embeddings.requires_grad else None
        if given is None:
            revision = (self.args.model_init_kwargs or {}).get("revision")
            given = load_lm_head(model.config._name_or_path, revision=revision, tied=tied)
        return given.detach().to(self.accelerator.device)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if "line" not in self._signature_columns:
            self._signature_columns.append("line")
        if self.args.needs_tokens and "prompt_length" not in self._signature_columns:
            weights = [name for statistic in STATISTICS for name in columns(statistic)]
            self._signature_columns += ["prompt_length", *weights, *LABEL_COLUMNS, *STEP_COLUMNS, *REFERENCE_COLUMNS]

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
        labels = [name for name in LABEL_COLUMNS if args.needs_labels and name in dataset.column_names]
        # Rows are known by their line; with labels to carry it must be their place in the data, not a number given.
        known = dataset.remove_columns("line") if labels and "line" in dataset.column_names else dataset
        rows, refused = preference_rows(known)
        if "margin" in rows.column_names and "margin" not in dataset.column_names:
            rows = rows.remove_columns("margin")  # derived from ratings: TRL would not have subtracted it
        tokenized, too_long = tokenize_pairs(rows, processing_class, max_length=args.max_length)
        for name in labels:
            values = dataset[name][:]
            tokenized = tokenized.add_column(name, [values[line - 1] for line in tokenized["line"]])
        for report in (refused, too_long):
            if report.refused:
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
        remainder = inputs.pop("epoch_remainder", None)
        if args.is_trl and remainder is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        extra = {name: inputs.pop(name) for name in EXTRA_INPUTS if name in inputs}
        pack, size = extra.pop("pack", None), len(inputs["input_ids"]) // 2
        with capture_head(self.model) as head:
            call = model if pack is None else _call_packed(model, head, pack, self._text_rows(size))
            trl_loss, outputs = super().compute_loss(call, inputs, return_outputs=True)
        # Rows that only fill up an epoch stay in the forward pass, which all processes must enter, and leave the loss.
        pairs, share = self._real_pairs(size, remainder)
        extra = {name: _of_pairs(value, pairs) for name, value in extra.items()}
        closing, rewards = (_of_pairs(value, pairs) for value in (outputs.logits.squeeze(-1), head.rewards))
        margin = inputs["margin"][:pairs] if "margin" in inputs else None
        loss = self._response_loss(trl_loss if remainder is None else None, closing, margin, rewards, extra, share)
        metrics = {{"bradley_terry": "bt"}.get(args.loss, args.loss) + "_loss": loss}
        if args.positive_weight > 0:
            metrics["positive_loss"] = positive_reward_penalty(closing.chunk(2)[0]) * share
            loss = loss + args.positive_weight * metrics["positive_loss"]
        loss = (1.0 - args.consistency_weight) * loss
        if args.sft_weight > 0 and args.text_form != "mean_nll":
            loss = (1.0 - args.sft_weight) * loss
        if args.consistency_weight > 0:
            loss = loss + args.consistency_weight * self._consistency(rewards, extra, metrics, share)
        if args.sft_weight > 0:
            hidden = head.hidden[:pairs] if self._text_rows(size) == size else _of_pairs(head.hidden, pairs)
            ids = _of_pairs(inputs["input_ids"], pairs)
            metrics["sft_loss"] = self._text_loss(hidden, ids, extra) * share
            loss = loss + args.sft_weight * metrics["sft_loss"]
        if "response_mask" in extra:
            metrics["token_reward_std"] = _spread(rewards, extra["response_mask"])
        self._note(metrics)
        return (loss, outputs) if return_outputs else loss

    def _text_rows(self, pairs: int) -> int:
        """How many rows the text term reads: the chosen ones, or all."""
        return 2 * pairs if self.args.text_form in ("grm_dpo_noref", "grm_dpo") else pairs

    def _real_pairs(self, pairs: int, remainder: int | None) -> tuple[int, float]:
        """How many of this process's pairs count, at least one, and the weight of their mean.

        The weight turns the mean over processes, which is what gradients become, into the mean over all pairs; it is 0
        where the process has none of its own.
        """
        if remainder is None:
            return pairs, 1.0
        own = min(max(remainder - self.accelerator.process_index * self.args.train_batch_size, 0), pairs)
        return max(own, 1), own * self.accelerator.num_processes / remainder

    def _response_loss(self, trl_loss, closing, margin, rewards, extra, share):
        """L: TRL's Bradley-Terry loss as it is, ours with smoothed labels, or one of the pointwise losses."""
        args = self.args
        if args.loss == "outcome":
            return outcome_loss(closing, extra["outcomes"]) * share
        if args.loss == "process":
            labelled = ~extra["step_values"].isnan()
            count = labelled.sum() * (share > 0)
            total = self.accelerator.reduce(count, "sum").clamp(min=1)
            return process_loss(rewards, extra["step_values"], labelled) * (
                count * self.accelerator.num_processes / total
            )
        if trl_loss is not None and not args.label_smoothing:
            return trl_loss
        chosen, rejected = closing.chunk(2)
        loss = bradley_terry_loss(chosen, rejected, margin=margin, label_smoothing=args.label_smoothing)
        if args.center_rewards_coefficient is not None:  # as TRL does
            loss = loss + args.center_rewards_coefficient * (chosen + rejected).square().mean()
        return loss * share

    def _consistency(self, rewards, extra, metrics, share):
        """L_reg = A / S, with A and W pooled over the tokens of all processes."""
        mask = extra["response_mask"]
        token_probs = extra.get("token_probs")
        if token_probs is None:
            token_probs = torch.ones_like(mask, dtype=torch.float32)
        weighting = self.args.weighting if self.args.weighting in TERM_WEIGHTINGS else "probability"
        options = {"form": self.args.form, "weighting": weighting}
        if self.args.loss == "bradley_terry":
            term, scale = consistency_terms(rewards, mask, token_probs, centering=self.args.centering, **options)
        else:
            term, scale = pointwise_consistency_terms(rewards, mask, token_probs, extra["outcomes"], **options)
        adjacent = mask[:, 1:] & mask[:, :-1]
        count = adjacent.sum().to(scale.dtype) * (share > 0)
        sums = self.accelerator.reduce(torch.stack([scale * count, count]), "sum")
        if self.model.training:
            self.scale.update(sums[0] / sums[1].clamp(min=1))
        # DDP averages gradients over processes; this weight turns that into the mean over all their tokens.
        weight = count * self.accelerator.num_processes / sums[1].clamp(min=1)
        normalised = term * weight / self.scale.value.to(scale.device)
        metrics["generator_probability"] = (token_probs[:, 1:] * adjacent).sum() / adjacent.sum().clamp(min=1)
        metrics["consistency_loss"] = normalised
        metrics["consistency_scale"] = self.scale.value.to(scale.device)
        return normalised

    def _text_loss(self, hidden, input_ids, extra):
        """L_text through the frozen LM head: mean token loss of the chosen response, or a form of GRM."""
        head = self.lm_head
        if head is None:
            head = without_adapter(self.model).get_input_embeddings().weight.detach()
        head = head.to(hidden.dtype)
        mask = extra["response_mask"]
        pairs = mask.shape[0] // 2
        rows = self._text_rows(pairs)
        # The op's own mean is cheaper, but comes in the states' type: in bfloat16 a sum made of it is off by nats.
        sums_matter = self.args.text_form != "mean_nll" and hidden.dtype.itemsize < 4
        losses = []
        for row in range(rows):  # one call a response: the formulas want a mean or sum of each
            predicted = mask[row, 1:]
            states, targets = hidden[row, :-1][predicted], input_ids[row, 1:][predicted]
            nll = token_nll(states, head, targets, reduction="none" if sums_matter else "mean")
            losses.append(nll.to(torch.promote_types(nll.dtype, torch.float32)).mean())
        means = torch.stack(losses)
        if self.args.text_form == "mean_nll":
            return means.mean()
        sums = -means * mask[:rows, 1:].sum(1)  # S(y): GRM sums over the tokens
        reference = extra["reference"].chunk(2) if "reference" in extra else (None, None)
        return grm_text_loss(
            sums[:pairs],
            sums[pairs:] if rows > pairs else None,
            form=self.args.text_form.removeprefix("grm_"),
            beta=self.args.text_beta,
            reference_chosen=reference[0],
            reference_rejected=reference[1],
        )

    def _note(self, metrics: dict[str, torch.Tensor]) -> None:
        # One transfer from the device for all of them.
        values = torch.stack([value.detach().float() for value in metrics.values()])
        values = self.accelerator.reduce(values, "mean").tolist()
        mode = "train" if self.model.training else "eval"
        for name, value in zip(metrics, values, strict=True):
            self._metrics[mode][name].append(value)


def _check_columns(args: ICRMConfig, present: set[str], dataset_name: str) -> None:
    needed = {
        columns(statistic_of(args)): args.needs_probabilities,
        LABEL_COLUMNS: args.needs_labels and present & set(LABEL_COLUMNS),  # both or none
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


def _spread(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the responses of the standard deviation of their token rewards."""
    with torch.no_grad():
        rewards = rewards.float().masked_fill(~mask, 0.0)
        count = mask.sum(1).clamp(min=1)
        mean = rewards.sum(1) / count
        return ((rewards - mean[:, None]).square() * mask).sum(1).div(count).sqrt().mean()


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
    return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=args.trust_remote_code)


def load_lm_head(path: str, *, revision: str | None = None, tied: bool = False) -> torch.Tensor:
    """Read the output embeddings of a causal checkpoint without loading the rest. Shape: (V, H).

    Args:
        path: local directory or hub id.
        revision: of the hub id.
        tied: they are the input embeddings, `model.embed_tokens.weight`; else `lm_head.weight`.

    Raises:
        ValueError: the checkpoint has no such tensor in safetensors files.
    """
    wanted = "model.embed_tokens.weight" if tied else "lm_head.weight"
    optional = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    name, file = "model.safetensors", None
    if path:  # a model built from a configuration has no name
        index = cached_file(path, "model.safetensors.index.json", **optional)
        if index:
            name = json.loads(Path(index).read_text())["weight_map"].get(wanted, name)
        file = cached_file(path, name, **optional)
    if file:
        with safe_open(file, framework="pt") as tensors:
            if wanted in tensors.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                return tensors.get_tensor(wanted)
    raise ValueError(
        f"no {wanted} in the safetensors files of {path!r}; pass lm_head=, start from a causal language model's "
        "checkpoint, or set sft_weight=0"
    )
