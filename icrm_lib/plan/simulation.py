"""What a stage costs, known before it starts: one step of its real pieces on tensors without contents.

The model is built from its configuration alone and filled with PyTorch's fake tensors, which have shapes and types but
no memory. One step then runs as the stage runs it (adapter, checkpointing, autocast, loss terms, optimiser), while
`FlopCounterMode` counts its products and `MemTracker` the bytes that would be alive. Two things are not as they are:

- masks choose no tokens, because fake tensors have no values to choose by: every token counts as one of the response,
  so the text term is an upper bound;
- the chunked language-model loss is a custom operation whose fake version hides its chunks; `_Chunks` does the same
  products.

A decoder with more than `2 * DEPTH` layers is measured at `DEPTH` and at `2 * DEPTH` of them and continued as a
straight line: the layers are equal, so each costs as much as the one before.
"""

import copy
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    PreTrainedConfig,
    TopPLogitsWarper,
)

from icrm_lib.generator.cache import model_scorer
from icrm_lib.language_model.causal import ROWS_PER_CHUNK, decoder_states, token_nll, without_adapter
from icrm_lib.objectives import bradley_terry_loss, consistency_terms
from icrm_lib.profiles import GeneratorSettings, RewardModelSettings
from icrm_lib.reward_model.head import add_mlp_head, capture_head, reward_head
from icrm_lib.training.fit import lora_config

DEPTH = 2
TOKENS_PER_BATCH = inspect.signature(model_scorer).parameters["tokens_per_batch"].default

Build = Callable[[PreTrainedConfig], torch.nn.Module]
Step = Callable[[torch.nn.Module, int, int], None]  # model, rows, tokens a row


@dataclass(frozen=True)
class Cost:
    """What one stage needs.

    Attributes:
        parameters: weights of the model, adapter and head included.
        trainable: those that get a gradient.
        flops: for one row of the expected length, a pair having two.
        peak_bytes: most bytes alive at once in the worst batch: weights, gradients, optimiser, activations.
        rows: of the worst batch.
        row_tokens: tokens of each of them.
    """

    parameters: int
    trainable: int
    flops: float
    peak_bytes: float
    rows: int
    row_tokens: int


# The stages ------------------------------------------------------------------------------------------------


def reward_model_cost(
    config: PreTrainedConfig, settings: RewardModelSettings, *, max_length: int, length: int, bf16: bool
) -> Cost:
    """Cost of training a reward model, as `methods.train_reward_model` does it.

    Args:
        config: of the base model.
        settings: those of a method (`methods.method_settings`).
        max_length: tokens of every row of the worst batch.
        length: tokens of an expected row.
        bf16: weights and arithmetic in bfloat16, adapter and head in float32, as on a GPU; else all in float32.
    """

    def build(config: PreTrainedConfig) -> torch.nn.Module:
        config.num_labels = 1
        if config.pad_token_id is None:
            config.pad_token_id = 0
        model = AutoModelForSequenceClassification.from_config(config, dtype=_type(bf16))
        if settings.head == "mlp":
            model = add_mlp_head(model, settings.mlp_size)
        if settings.frozen_backbone:
            model.requires_grad_(False)
            model.score.requires_grad_(True)
        else:
            model = get_peft_model(
                model, replace(lora_config(settings), modules_to_save=["score"])
            )  # as the trainer does
        for weight in reward_head(model).parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        return _checkpointed(model, settings.gradient_checkpointing)

    def step(model: torch.nn.Module, rows: int, length: int) -> None:
        ids, mask = _batch(rows, length)
        head = _text_head(model) if settings.sft_weight > 0 else None
        with capture_head(model) as out, _autocast(bf16):
            closing = model(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
        loss = bradley_terry_loss(*closing.float().chunk(2))  # the other losses of the closing token cost as little
        if settings.consistency_weight > 0:
            options = {"form": settings.form, "centering": settings.centering}
            term, _ = consistency_terms(out.rewards, mask.bool(), mask.float(), **options)
            loss = loss + term
        if head is not None:
            loss = loss + _text_term(out.hidden, head, ids, settings)
        loss.backward()

    return _cost(config, build, step, 2 * settings.batch_size, max_length, length, settings.accumulation)


def generator_fit_cost(
    config: PreTrainedConfig, settings: GeneratorSettings, *, max_length: int, length: int, bf16: bool
) -> Cost:
    """Cost of fitting the generator, as `generator.fit_generator` does it. Arguments: see `reward_model_cost`."""
    lora = LoraConfig(
        task_type="CAUSAL_LM", r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear"
    )

    def build(config: PreTrainedConfig) -> torch.nn.Module:
        model = AutoModelForCausalLM.from_config(config, dtype=_type(bf16)).requires_grad_(False)
        return _checkpointed(get_peft_model(model, lora), settings.gradient_checkpointing)

    rows = 2 * settings.batch_size
    return _cost(config, build, _language_model_step(bf16), rows, max_length, length, settings.accumulation)


def base_model_cost(config: PreTrainedConfig, *, rows: int, max_length: int, length: int, bf16: bool) -> Cost:
    """Cost of training a base model from nothing, as `base_model.train_language_model` does it, all weights in float32.

    Args:
        config: of the base model.
        rows: sequences a batch.
        max_length, length, bf16: see `reward_model_cost`.
    """
    return _cost(config, AutoModelForCausalLM.from_config, _language_model_step(bf16), rows, max_length, length, 1)


def generator_pass_cost(
    config: PreTrainedConfig, settings: GeneratorSettings, *, max_length: int, length: int, bf16: bool
) -> Cost:
    """Cost of asking the generator once, as `generator.model_scorer` does it. Arguments: see `reward_model_cost`."""
    rows = max(1, TOKENS_PER_BATCH // max_length)
    return _cost(config, _frozen(bf16), _pass_step(settings.top_p), rows, max_length, length, None)


def sampling_cost(config: PreTrainedConfig, *, rows: int, max_length: int, length: int, bf16: bool) -> Cost:
    """Cost of drawing responses, as `sampling.sample` does it with "transformers".

    The peak is that of the last token of the longest responses, behind a full cache of keys and values.

    Args:
        config: of the model that is sampled.
        rows: responses drawn at once.
        max_length: tokens of prompt and longest response.
        length: tokens of the expected prompt and response.
        bf16: see `reward_model_cost`.
    """

    def last_token(model: torch.nn.Module, rows: int, length: int) -> None:
        config, cache = model.config, DynamicCache(config=model.config)
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        for layer in range(config.num_hidden_layers):
            past = torch.zeros(rows, config.num_key_value_heads, length - 1, size, dtype=model.dtype)
            cache.update(past, past.clone(), layer)
        with torch.no_grad():
            model(input_ids=_batch(rows, 1)[0], past_key_values=cache, use_cache=True)

    whole = _cost(config, _frozen(bf16), _pass_step(), 1, length, length, None)
    peak = _by_depth(config, lambda config: _peak(_frozen(bf16), last_token, config, rows, max_length, None))
    return Cost(whole.parameters, 0, whole.flops, peak, rows, max_length)


def _frozen(bf16: bool) -> Build:
    return lambda config: AutoModelForCausalLM.from_config(config, dtype=_type(bf16)).eval().requires_grad_(False)


def _language_model_step(bf16: bool) -> Step:
    """`base_model.LanguageModelTrainer.compute_loss` and its backward pass."""

    def step(model: torch.nn.Module, rows: int, length: int) -> None:
        causal_lm = without_adapter(model)
        ids, mask = _batch(rows, length)
        with _autocast(bf16):
            hidden = decoder_states(model, causal_lm, input_ids=ids, attention_mask=mask)
        head = causal_lm.get_output_embeddings().weight
        token_nll(hidden[:, :-1].flatten(0, 1), head, ids[:, 1:].flatten()).float().mean().backward()

    return step


def _pass_step(top_p: float = 1.0) -> Step:
    """`generator.token_logprobs`."""

    def step(model: torch.nn.Module, rows: int, length: int) -> None:
        ids, mask = _batch(rows, length)
        with torch.no_grad():
            states = decoder_states(model, model, input_ids=ids, attention_mask=mask)[:, :-1].flatten(0, 1)
            targets, head = ids[:, 1:].flatten(), model.get_output_embeddings()
            for start in range(0, len(states), ROWS_PER_CHUNK):
                piece = slice(start, start + ROWS_PER_CHUNK)
                logits = head(states[piece]).float() / 1.0
                if top_p < 1:
                    logits = TopPLogitsWarper(top_p)(None, logits)
                _ = logits.gather(1, targets[piece, None]).squeeze(1) - logits.logsumexp(1)

    return step


def _text_head(model: torch.nn.Module) -> torch.Tensor:
    """What `ICRMTrainer` holds for the text term: nothing of its own when embeddings are tied, else the LM head."""
    inner = without_adapter(model)
    embeddings = inner.get_input_embeddings().weight.detach()
    return embeddings if inner.config.tie_word_embeddings else torch.empty_like(embeddings)


def _text_term(
    hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor, settings: RewardModelSettings
) -> torch.Tensor:
    """`ICRMTrainer._text_loss`: one call a response, of the chosen half or of all."""
    rows = len(ids) if settings.text_form in ("grm_dpo_noref", "grm_dpo") else len(ids) // 2
    reduction = "none" if settings.text_form != "mean_nll" and hidden.dtype.itemsize < 4 else "mean"
    head = head.to(hidden.dtype)
    losses = [
        token_nll(hidden[row, :-1], head, ids[row, 1:], reduction=reduction).float().mean() for row in range(rows)
    ]
    return torch.stack(losses).mean()


# One step on fake tensors ----------------------------------------------------------------------------------


def _cost(
    config: PreTrainedConfig,
    build: Build,
    step: Step,
    rows: int,
    max_length: int,
    length: int,
    accumulation: int | None,
) -> Cost:
    """Cost of a stage; `accumulation` is None where nothing is trained."""
    with torch.device("meta"):
        weights = list(build(copy.deepcopy(config)).parameters())
    trainable = sum(weight.numel() for weight in weights if weight.requires_grad) if accumulation else 0
    flops = _by_depth(config, lambda config: _flops(build, step, config, 2, length, accumulation))
    peak = _by_depth(config, lambda config: _peak(build, step, config, rows, max_length, accumulation))
    return Cost(sum(weight.numel() for weight in weights), trainable, flops / 2, peak, rows, max_length)


def _by_depth(config: PreTrainedConfig, measure: Callable[[PreTrainedConfig], float]) -> float:
    layers = config.num_hidden_layers
    if layers <= 2 * DEPTH:
        return measure(config)
    low, high = (measure(_with_layers(config, depth)) for depth in (DEPTH, 2 * DEPTH))
    return high + (high - low) / DEPTH * (layers - 2 * DEPTH)


def _with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    return config


def _flops(
    build: Build, step: Step, config: PreTrainedConfig, rows: int, length: int, accumulation: int | None
) -> float:
    """Return the FLOPs of one step."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    attention = "_scaled_dot_product_flash_attention"
    for end in ("", "_backward"):  # on a CPU the same formula, which is registered for GPUs only
        formula = counter.flop_registry[getattr(torch.ops.aten, attention + end)]
        counter.flop_registry[getattr(torch.ops.aten, f"{attention}_for_cpu{end}")] = formula
    _run(build, step, config, rows, length, accumulation, counter)
    return float(counter.get_total_flops())


def _peak(
    build: Build, step: Step, config: PreTrainedConfig, rows: int, length: int, accumulation: int | None
) -> float:
    """Return the most bytes alive in one step."""
    memory = _Memory()
    _run(build, step, config, rows, length, accumulation, memory)
    (snapshot,) = memory.get_tracker_snapshot("peak").values()
    return float(snapshot["Total"])


def _run(
    build: Build,
    step: Step,
    config: PreTrainedConfig,
    rows: int,
    length: int,
    accumulation: int | None,
    watch: AbstractContextManager,
) -> None:
    """Run one step of a stage with `watch` entered."""
    with torch.device("meta"):  # PEFT cannot move fake weights from one type to another
        model = build(copy.deepcopy(config))
    with FakeTensorMode(), patch.object(torch.nn.functional, "linear_cross_entropy", _chunked_loss):
        _fill(model)
        if isinstance(watch, _Memory):
            watch.track_external(model)
        with watch:
            weights = [weight for weight in model.parameters() if weight.requires_grad] if accumulation else []
            if weights:
                # Not the first step, in which the optimiser has no state yet; and where batches are accumulated not
                # the first of them, which finds no gradients.
                optimizer = torch.optim.AdamW(weights, fused=True)
                for weight in weights:
                    weight.grad = torch.zeros_like(weight)
                optimizer.step()
                if accumulation == 1:
                    optimizer.zero_grad()
            step(model, rows, length)
            if weights:
                optimizer.step()


def _fill(model: torch.nn.Module) -> None:
    """Put fake CPU tensors in the place of meta tensors; what was tied stays tied."""
    weights: dict[torch.Tensor, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fresh = torch.nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                module._parameters[name] = weights.setdefault(weight, fresh)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class _NoModules(nullcontext):
    """Stands in for the trackers of modules: their hooks keep recomputed activations alive."""

    parents, is_bw = frozenset({"Global"}), False

    def register_user_hooks(self, *hooks) -> None: ...

    def clear_user_hooks(self) -> None: ...


class _Memory(MemTracker):
    """The total alone: the tracking by module refuses frozen weights."""

    def __init__(self):
        super().__init__()
        self._mod_tracker = _NoModules()


def _chunked_loss(states, head, targets, *, reduction, options):
    return _Chunks.apply(states, head, reduction, options.batch_chunk_size)


class _Chunks(torch.autograd.Function):
    """The products of `F.linear_cross_entropy` with `LinearCrossEntropyOptions`, on a GPU and for float32 on a CPU.

    "mean" computes the gradients on the way forward, "none" computes the logits again on the way back. The logits of a
    chunk are float32; for a product with bfloat16 there is a second copy.
    """

    @staticmethod
    def forward(ctx, states, head, reduction, rows):
        ctx.mean, ctx.rows = reduction == "mean", rows
        if ctx.mean:
            ctx.save_for_backward(*_gradients(states, head, rows, ctx.needs_input_grad))
            return states.new_zeros(())
        ctx.save_for_backward(states, head)
        for piece in states.split(rows):
            (piece @ head.T).float()
        return states.new_zeros(len(states))

    @staticmethod
    def backward(ctx, slope):
        gradients = ctx.saved_tensors if ctx.mean else _gradients(*ctx.saved_tensors, ctx.rows, ctx.needs_input_grad)
        return *gradients, None, None


def _gradients(states, head, rows, wanted):
    of_states = torch.empty_like(states) if wanted[0] else None
    of_head = torch.zeros_like(head) if wanted[1] else None
    for start in range(0, len(states), rows):
        piece = states[start : start + rows]
        logits = (piece @ head.T).float()
        slopes = logits.to(head.dtype)
        if wanted[0]:
            of_states[start : start + rows] = slopes @ head
        if wanted[1]:
            of_head.addmm_(slopes.T, piece)
    return of_states, of_head


def _batch(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.long)


def _checkpointed(model: torch.nn.Module, wanted: bool) -> torch.nn.Module:
    if wanted:
        without_adapter(model).activation_checkpointing_enable()
        if isinstance(model, PeftModel):
            model.enable_input_require_grads()
    return model.train()


def _type(bf16: bool) -> torch.dtype:
    return torch.bfloat16 if bf16 else torch.float32


def _autocast(bf16: bool) -> AbstractContextManager:
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)
