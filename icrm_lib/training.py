"""ICRM training on top of TRL's RewardTrainer: the consistency term, its running scale, and the text term."""

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
)
from transformers.trainer_callback import ExportableState
from transformers.utils.hub import cached_file
from trl import RewardConfig, RewardTrainer
from trl.data_utils import get_dataset_column_names
from trl.trainer.reward_trainer import DataCollatorForPreference
from trl.trainer.utils import global_then_local_main_first

from icrm_lib import runtime
from icrm_lib.base_model import LogFile, refuse_transformed_logits, token_nll, without_adapter
from icrm_lib.generator import COLUMNS as LOGPROB_COLUMNS
from icrm_lib.objectives import CENTERINGS, FORMS, WEIGHTINGS, consistency_terms
from icrm_lib.preferences import preference_rows, tokenize_pairs
from icrm_lib.profiles import RewardModelSettings, nearest
from icrm_lib.reward_model import capture_head, reward_head
from icrm_lib.tokenization import prepare_tokenizer

logger = logging.getLogger(__name__)


@dataclass
class ICRMConfig(RewardConfig):
    """TRL's `RewardConfig` and the settings of ICRM (arXiv 2506.09096).

    The loss is sft_weight * L_sft + consistency_weight * A / S + (1 - consistency_weight) * L_bt, with L_bt TRL's own
    loss (margin and centring included). With `consistency_weight=0` and `sft_weight=0` training is TRL's, to the bit.

    Args:
        consistency_weight: lambda, in [0, 1). The paper: 0.1.
        sft_weight: weight of the chosen response's mean token loss through the frozen LM head, >= 0. The paper adds
            the term with weight 1 but scales its gradient into the backbone by 0.001; with a frozen head both are one.
        weighting, form, centering: see `objectives.consistency_terms`.
        scale_decay: decay of the running scale S, in [0, 1).
        scale_start: S before the first step, > 0.
    """

    consistency_weight: float = field(default=0.1, metadata={"help": "lambda of the consistency term, in [0, 1)."})
    sft_weight: float = field(default=0.001, metadata={"help": "Weight of the text term on the chosen response."})
    weighting: str = field(default="probability", metadata={"help": "Weights of the term: probability or uniform."})
    form: str = field(default="mutual_bce", metadata={"help": "Form of the consistency term."})
    centering: str = field(default="response", metadata={"help": "What the token rewards are centred on."})
    scale_decay: float = field(default=0.95, metadata={"help": "Decay of the running scale S."})
    scale_start: float = field(default=0.5, metadata={"help": "S before the first step."})

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 <= self.consistency_weight < 1.0:
            raise ValueError(f"consistency_weight must be in [0, 1), got {self.consistency_weight}")
        for name, known in (("weighting", WEIGHTINGS), ("form", FORMS), ("centering", CENTERINGS)):
            if getattr(self, name) not in known:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; {nearest(getattr(self, name), list(known))}")
        if self.sft_weight < 0.0:
            raise ValueError(f"sft_weight must be >= 0, got {self.sft_weight}")
        if not 0.0 <= self.scale_decay < 1.0 or self.scale_start <= 0.0:
            raise ValueError(
                f"scale_decay must be in [0, 1) and scale_start > 0, got {self.scale_decay} and {self.scale_start}"
            )

    @property
    def needs_probabilities(self) -> bool:
        """Whether training reads the generator's log-probabilities."""
        return reads_generator(self)

    @property
    def needs_tokens(self) -> bool:
        """Whether training looks at more than the reward of the closing token."""
        return self.consistency_weight > 0 or self.sft_weight > 0


def reads_generator(settings: "ICRMConfig | RewardModelSettings") -> bool:
    """Say whether a training with these settings needs the generator's log-probabilities."""
    return settings.consistency_weight > 0 and settings.weighting != "uniform"


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


@dataclass
class DataCollatorForConsistency(DataCollatorForPreference):
    """TRL's collator, plus the response mask and the generator's probabilities.

    Rows need `chosen_ids`, `rejected_ids`, `prompt_length`, and, where `probabilities` is True, `chosen_logprobs` and
    `rejected_logprobs` (one a response token). Adds `response_mask` (bool) and `token_probs`, both of shape (2B, T).
    """

    probabilities: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        attended = output["attention_mask"].bool()
        prompts = torch.tensor([row["prompt_length"] for row in examples] * 2)
        output["response_mask"] = attended & (torch.arange(attended.shape[1]) >= prompts[:, None])
        if self.probabilities:
            logprobs = torch.zeros(attended.shape)
            values = [row[name] for name in LOGPROB_COLUMNS for row in examples]
            lengths = attended.sum(1).tolist()
            for row, (start, end, value) in enumerate(zip(prompts.tolist(), lengths, values, strict=True)):
                if len(value) != end - start:  # a missing one would read as log 1: fully tied
                    raise ValueError(
                        f"a row has {end - start} response tokens but {len(value)} generator log-probabilities; they "
                        "belong to other data: compute them again"
                    )
                logprobs[row, start:end] = torch.as_tensor(value)
            output["token_probs"] = logprobs.exp() * output["response_mask"]
        return output


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
            `chosen_logprobs`, `rejected_logprobs`; returns it with them, e.g. through `generator.cached_logprobs`.
        lm_head: frozen output embeddings for the text term. Shape: (V, H). By default the tied embeddings, or the
            `lm_head.weight` of the checkpoint the model was loaded from.
        Others: as in `trl.RewardTrainer`.

    Raises:
        ValueError: the data lack generator log-probabilities, or no LM head can be found for the text term.
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
                probabilities=args.needs_probabilities,
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

    def _find_lm_head(self, given: torch.Tensor | None) -> torch.Tensor | None:
        # None stands for tied embeddings that stay as they are: no copy. Trained ones are copied before they move.
        model = without_adapter(self.model)
        refuse_transformed_logits(model.config)
        embeddings = model.get_input_embeddings().weight
        if given is None and model.config.get_text_config().tie_word_embeddings:
            return embeddings.detach().clone() if embeddings.requires_grad else None
        if given is None:
            revision = (self.args.model_init_kwargs or {}).get("revision")
            given = load_lm_head(model.config._name_or_path, revision=revision)
        return given.detach().to(self.accelerator.device)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        if self.args.needs_tokens and "prompt_length" not in self._signature_columns:
            self._signature_columns += ["prompt_length", *LOGPROB_COLUMNS]

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        if args.needs_tokens:
            columns = set(get_dataset_column_names(dataset))
            if not {"chosen_ids", "rejected_ids", "prompt_length"} <= columns:
                dataset = self._tokenize(dataset, processing_class, args, dataset_name)
            if args.needs_probabilities and not set(LOGPROB_COLUMNS) <= columns:
                if self.add_logprobs is None:
                    raise ValueError(
                        f"the {dataset_name} dataset has no columns {' and '.join(LOGPROB_COLUMNS)}; add them with "
                        "generator.cached_logprobs, pass add_logprobs=, or set weighting='uniform'"
                    )
                with global_then_local_main_first():  # one process computes, the others read its cache
                    dataset = self.add_logprobs(dataset, processing_class)
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
        rows, refused = preference_rows(dataset)
        if "margin" in rows.column_names and "margin" not in dataset.column_names:
            rows = rows.remove_columns("margin")  # derived from ratings: TRL would not have subtracted it
        tokenized, too_long = tokenize_pairs(rows, processing_class, max_length=args.max_length)
        for report in (refused, too_long):
            if report.refused:
                logger.warning("%s: %s", dataset_name, report)
        return tokenized

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not self.args.needs_tokens:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        mask = inputs.pop("response_mask")
        token_probs = inputs.pop("token_probs", torch.ones_like(mask, dtype=torch.float32))
        with capture_head(self.model) as head:
            loss_bt, outputs = super().compute_loss(model, inputs, return_outputs=True)
        metrics = {"bt_loss": loss_bt, "token_reward_std": _spread(head.rewards, mask)}
        loss = (1.0 - self.args.consistency_weight) * loss_bt
        if self.args.consistency_weight > 0:
            term = self._consistency(head.rewards, mask, token_probs, metrics)
            loss = loss + self.args.consistency_weight * term
        if self.args.sft_weight > 0:
            metrics["sft_loss"] = self._text_loss(head.hidden, inputs["input_ids"], mask)
            loss = loss + self.args.sft_weight * metrics["sft_loss"]
        self._note(metrics)
        return (loss, outputs) if return_outputs else loss

    def _consistency(self, rewards, mask, token_probs, metrics):
        """L_reg = A / S, with A and W pooled over the tokens of all processes."""
        term, scale = consistency_terms(
            rewards,
            mask,
            token_probs,
            centering=self.args.centering,
            form=self.args.form,
            weighting=self.args.weighting,
        )
        adjacent = mask[:, 1:] & mask[:, :-1]
        count = adjacent.sum().to(scale.dtype)
        sums = self.accelerator.reduce(torch.stack([scale * count, count]), "sum")
        if self.model.training:
            self.scale.update(sums[0] / sums[1].clamp(min=1))
        # DDP averages gradients over processes; this weight turns that into the mean over all their tokens.
        share = count * self.accelerator.num_processes / sums[1].clamp(min=1)
        normalised = term * share / self.scale.value.to(scale.device)
        metrics["generator_probability"] = (token_probs[:, 1:] * adjacent).sum() / count.clamp(min=1)
        metrics["consistency_loss"] = normalised
        metrics["consistency_scale"] = self.scale.value.to(scale.device)
        return normalised

    def _text_loss(self, hidden, input_ids, mask):
        """L_sft: mean over the chosen responses of their mean token loss through the frozen LM head."""
        head = self.lm_head
        if head is None:
            head = without_adapter(self.model).get_input_embeddings().weight.detach()
        head = head.to(hidden.dtype)
        losses = []
        for row in range(mask.shape[0] // 2):  # one call a response: the op's own mean is what the formula wants
            predicted = mask[row, 1:]
            states, targets = hidden[row, :-1][predicted], input_ids[row, 1:][predicted]
            losses.append(token_nll(states, head, targets, reduction="mean"))
        return torch.stack(losses).float().mean()

    def _note(self, metrics: dict[str, torch.Tensor]) -> None:
        # One transfer from the device for all of them.
        values = torch.stack([value.detach().float() for value in metrics.values()])
        values = self.accelerator.reduce(values, "mean").tolist()
        mode = "train" if self.model.training else "eval"
        for name, value in zip(metrics, values, strict=True):
            self._metrics[mode][name].append(value)


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


def load_lm_head(path: str, *, revision: str | None = None) -> torch.Tensor:
    """Read `lm_head.weight` of a causal checkpoint without loading the rest. Shape: (V, H).

    Args:
        path: local directory or hub id.
        revision: of the hub id.

    Raises:
        ValueError: the checkpoint has no such tensor in safetensors files.
    """
    optional = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    name, file = "model.safetensors", None
    if path:  # a model built from a configuration has no name
        index = cached_file(path, "model.safetensors.index.json", **optional)
        if index:
            name = json.loads(Path(index).read_text())["weight_map"].get("lm_head.weight", name)
        file = cached_file(path, name, **optional)
    if file:
        with safe_open(file, framework="pt") as tensors:
            if "lm_head.weight" in tensors.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                return tensors.get_tensor("lm_head.weight")
    raise ValueError(
        f"no lm_head.weight in the safetensors files of {path!r}; pass lm_head=, start from a causal language model's "
        "checkpoint, or set sft_weight=0"
    )


# What a method changes in the profile's reward-model settings.
METHODS: dict[str, dict[str, Any]] = {
    "bt": {"consistency_weight": 0.0, "sft_weight": 0.0},
    "icrm": {},
    "icrm_uniform": {"weighting": "uniform"},
}


def method_settings(settings: RewardModelSettings, method: str) -> RewardModelSettings:
    """Return the settings of a named method.

    Raises:
        ValueError: unknown method; the message names the nearest.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; {nearest(method, list(METHODS))}")
    return dataclasses.replace(settings, **METHODS[method])


def train_reward_model(
    base_model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    train_dataset: Dataset,
    settings: RewardModelSettings,
    *,
    folder: Path,
    seed: int,
    eval_dataset: Dataset | None = None,
    max_length: int | None = None,
    bf16: bool | None = None,
) -> ICRMTrainer:
    """Train one reward model with LoRA; the log goes to `log.jsonl` in `folder` as it happens.

    Args:
        base_model: local directory or hub id.
        tokenizer: its tokenizer, prepared.
        train_dataset: tokenised pairs; with the generator's log-probabilities where the settings need them.
        settings: the profile's, changed by `method_settings`.
        folder: for log and checkpoints.
        seed: of head, LoRA and data order.
        eval_dataset: evaluated after every epoch when given.
        max_length: tokens; None where the data were cut when they were tokenised.
        bf16: frozen weights and arithmetic in bfloat16; on a GPU if None.

    Returns:
        the finished trainer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = runtime.device() == "cuda"
    bf16 = on_gpu if bf16 is None else bf16
    args = ICRMConfig(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=4 * settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        max_length=max_length,
        bf16=bf16,
        use_cpu=not on_gpu,
        model_init_kwargs={"dtype": "bfloat16" if bf16 else "float32", "use_safetensors": True},
        gradient_checkpointing=settings.gradient_checkpointing,
        eval_strategy="no" if eval_dataset is None else "epoch",
        save_strategy="no",
        logging_steps=5,
        report_to="none",
        disable_tqdm=not runtime.watched(),
        seed=seed,
        consistency_weight=settings.consistency_weight,
        sft_weight=settings.sft_weight,
        weighting=settings.weighting,
    )
    trainer = ICRMTrainer(
        str(base_model),
        args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            task_type="SEQ_CLS", r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear"
        ),
        callbacks=[LogFile(folder / "log.jsonl")],
    )
    trainer.remove_callback(PrinterCallback)
    for weight in reward_head(trainer.model).parameters():
        if weight.requires_grad:  # PEFT keeps LoRA in float32 but copies the head in bfloat16, where small steps vanish
            weight.data = weight.data.float()
    trainer.train()
    return trainer
