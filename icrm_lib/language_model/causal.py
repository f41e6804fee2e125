"""A causal language model: load it, run its decoder, and say how likely tokens are without holding all logits."""

from pathlib import Path

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from icrm_lib import runtime
from icrm_lib.language_model.loading import SAFE, refuse_pickles

# Rows of the vocabulary projection computed at a time: bounds the logits that exist at once to 256 x V. With half of it
# the loss takes a tenth longer, with twice as many it is no faster.
ROWS_PER_CHUNK = 256


def load_causal_lm(path: str | Path, *, device: str | None = None, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a causal language model (safetensors only, no remote code) in evaluation mode, frozen.

    Args:
        path: local directory or hub id.
        device: where to put it; the GPU when one is visible if None.
        dtype: weights' type; the checkpoint's own if None.

    Raises:
        ValueError: a directory with pickled weights only.
    """
    refuse_pickles(path)
    model = AutoModelForCausalLM.from_pretrained(str(path), dtype=dtype or "auto", **SAFE)
    return model.to(device or runtime.device()).eval().requires_grad_(False)


def without_adapter(model: torch.nn.Module) -> PreTrainedModel:
    """Return the `transformers` model inside a PEFT wrapper (its LoRA layers stay in it), or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


# Configuration keys of architectures whose logits are more than `hidden @ lm_head^T`, and what they hold when inactive:
# Gemma 2 caps them, Granite divides them, Cohere multiplies them.
LOGIT_TRANSFORMS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}


def logit_transforms(config: PreTrainedConfig) -> dict[str, float]:
    """Return the active entries of `LOGIT_TRANSFORMS` in a model's configuration."""
    values = config.get_text_config().to_dict()
    return {name: values[name] for name, off in LOGIT_TRANSFORMS.items() if values.get(name) not in (None, off)}


def refuse_transformed_logits(config: PreTrainedConfig) -> None:
    """Raise for architectures that cap or scale their logits, which the chunked loss does not compute.

    Raises:
        ValueError: names the setting and the remedy.
    """
    active = logit_transforms(config)
    if active:
        raise ValueError(
            f"{config.model_type} transforms its logits ({active}), which the chunked language-model loss does not "
            "compute; choose another model, or generator kind 'base' and sft_weight 0"
        )


def token_nll(
    hidden: torch.Tensor, lm_head: torch.Tensor, targets: torch.Tensor, *, reduction: str = "none"
) -> torch.Tensor:
    """Negative log-likelihood of the targets under softmax(hidden @ lm_head^T), never holding N x V logits.

    Args:
        hidden: last hidden states, one a predicted token. Shape: (N, H).
        lm_head: the frozen or trained projection. Shape: (V, H).
        targets: token ids. Shape: (N,).
        reduction: "none", or "mean" (half the time: its backward pass need not compute the logits again).

    Returns:
        Shape: (N,), or () for "mean". Differentiable in `hidden` and `lm_head`.
    """
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS_PER_CHUNK, chunking_method=None)
    return F.linear_cross_entropy(hidden, lm_head.to(hidden.dtype), targets, reduction=reduction, options=options)


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
    hook = causal_lm.get_decoder().register_forward_hook(lambda module, args, out: states.append(out[0]))
    try:
        model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        hook.remove()
    return states[0]
