"""A causal language model: load it and nothing that is code, adapt it, feed it batches, read token losses from it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from icrm_lib import runtime
from icrm_lib.language_model.adapters import is_adapter, merged_adapter
from icrm_lib.language_model.lm_head import transforms_logits
from icrm_lib.language_model.loading import load_whole, model_folder, refuse_pickles
from icrm_lib.profiles import GeneratorSettings, RewardModelSettings


def load_causal_lm(path: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a causal language model (safetensors only, no remote code) in evaluation mode, frozen.

    Args:
        path: local directory or hub id of a model, or of an adapter of one, which is merged into it.
        device: where to put it; the GPU when one is visible if None.
        dtype: weights' type; the checkpoint's own if None.

    Raises:
        FileNotFoundError: no such model.
        ValueError: a directory with pickled weights only, or without a weight that the model has (no language-model
            head, say); an adapter that cannot be merged.
    """
    folder = model_folder(path)
    refuse_pickles(folder)
    if is_adapter(folder):
        model = merged_adapter(folder, lambda base: load_causal_lm(base, device="cpu", dtype=dtype))
    else:
        model = load_whole(AutoModelForCausalLM, folder, dtype=dtype or "auto")
    return model.to(device or runtime.device()).eval().requires_grad_(False)


def without_adapter(model: torch.nn.Module) -> PreTrainedModel:
    """Return the `transformers` model inside a PEFT wrapper (its LoRA layers stay in it), or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def lora_config(
    settings: GeneratorSettings | RewardModelSettings, *, task_type: str = "CAUSAL_LM", **options
) -> LoraConfig:
    """Return the adapter's configuration.

    Args:
        settings: `lora_rank` and `lora_alpha` of the profile.
        task_type: PEFT's name of what the model is for.
        options: more of `LoraConfig`, e.g. `exclude_modules`.
    """
    options |= {"r": settings.lora_rank, "lora_alpha": settings.lora_alpha, "target_modules": "all-linear"}
    return LoraConfig(task_type=task_type, **options)


def padded(
    rows: Sequence[list[int]],
    pad_token_id: int,
    *,
    side: str = "right",
    seen: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Pad rows of token ids to one length.

    Args:
        rows: token ids, none empty. N lists.
        pad_token_id: padding id; it is masked.
        side: "right", so that causal attention never sees the padding, or "left", to generate.
        seen: tokens before each row that a KV cache holds; the mask covers them, too.
        device: where to put both.

    Returns:
        `input_ids`, shape (N, T), and `attention_mask`, shape (N, seen + T).
    """
    ids = [torch.tensor(row) for row in rows]
    attended = [torch.ones(seen + len(row), dtype=torch.long) for row in rows]
    ids = pad_sequence(ids, batch_first=True, padding_value=pad_token_id, padding_side=side)
    mask = pad_sequence(attended, batch_first=True, padding_side=side)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def batches_of(
    members: Sequence[int], lengths: Sequence[int], *, tokens: int, rows: int | None = None
) -> Iterator[list[int]]:
    """Cut rows into batches from short to long.

    Args:
        members: indices of the rows.
        lengths: tokens of every row, by index.
        tokens: most padded tokens of a batch; a longer row has a batch of its own.
        rows: most rows of a batch; any number when None.

    Yields:
        indices of the rows of one batch.
    """
    batch: list[int] = []
    for index in sorted(members, key=lambda i: lengths[i]):  # the last member decides the padded length
        if batch and (len(batch) == rows or (len(batch) + 1) * lengths[index] > tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


# Rows of the vocabulary projection computed at a time: bounds the logits that exist at once to 256 x V. With half of it
# the loss takes a tenth longer, with twice as many it is no faster.
ROWS_PER_CHUNK = 256


def refuse_transformed_logits(config: PreTrainedConfig) -> None:
    """Raise for architectures that cap or scale their logits, which the chunked loss does not compute.

    Raises:
        ValueError: names the architecture and the remedy.
    """
    if transforms_logits(config):
        raise ValueError(
            f"{config.model_type} transforms its logits (caps, scales or cuts what its output layer gives), which the "
            "chunked language-model loss does not compute; choose another model, or generator kind 'base' and "
            "sft_weight 0"
        )


def token_nll(
    hidden: torch.Tensor,
    lm_head: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    reduction: str = "none",
) -> torch.Tensor:
    """Negative log-likelihood of targets under softmax(hidden @ lm_head^T + bias), of N x V logits a chunk at a time.

    Args:
        hidden: last hidden states, one a predicted token. Shape: (N, H).
        lm_head: the frozen or trained projection. Shape: (V, H).
        targets: token ids. Shape: (N,).
        bias: of the projection. Shape: (V,); most architectures have none.
        reduction: "none", or "mean" (half the time: its backward pass need not compute the logits again).

    Returns:
        Shape: (N,), or () for "mean"; in the states' type or float32. Differentiable in `hidden`, `lm_head` and `bias`.
    """
    if hidden.device.type == "cpu" and hidden.dtype.itemsize < 4 and len(hidden) <= 2 * ROWS_PER_CHUNK:
        # There the fused op makes a float32 copy of the head in every call; rows this few need no chunks.
        logits = F.linear(hidden, lm_head.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        return F.cross_entropy(logits.float(), targets, reduction=reduction)
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS_PER_CHUNK, chunking_method=None)
    lm_head, bias = lm_head.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    return F.linear_cross_entropy(hidden, lm_head, targets, linear_bias=bias, reduction=reduction, options=options)


def decoder_states(model: torch.nn.Module, causal_lm: PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    """Run the (possibly wrapped) causal model and return the decoder's last hidden states. Shape: (N, T, H).

    The call goes through the wrapper, so DDP, FSDP and gradient checkpointing keep working; the logits, which the
    model would otherwise compute for every position, are asked for one position only.

    Args:
        model: what to call, e.g. the DDP or PEFT wrapper.
        causal_lm: the `transformers` model inside it.
        inputs: `input_ids`, `attention_mask`.
    """
    states = []
    # As an index, not as a number: what a slice leaves is not contiguous, and the head would be copied for every row.
    last = torch.tensor([-1], device=causal_lm.device)
    hook = causal_lm.get_decoder().register_forward_hook(lambda module, args, out: states.append(out[0]))
    try:
        model(**inputs, use_cache=False, logits_to_keep=last)
    finally:
        hook.remove()
    return states[0]
