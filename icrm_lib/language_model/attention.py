"""Masks of our own making: which architectures follow them to the letter, and the form that each attention takes."""

import torch
from transformers import PreTrainedConfig

# Decoders of `transformers` whose attention follows any mask, with positions as they are given; tested one by one.
MASKED = {"llama", "mistral", "gemma", "qwen2", "qwen3", "phi", "phi3", "gpt_neox", "gpt2", "olmo2", "smollm3"}
MASKING = ("sdpa", "eager", "flex_attention")


def why_not_masked(config: PreTrainedConfig) -> str | None:
    """Say why a model does not see what a mask lets it see, and no less, or None if it does.

    Args:
        config: of the model, with the attention implementation it was loaded with.
    """
    attention, text = config._attn_implementation or "", config.get_text_config()
    reason = unmasked_architecture(config)
    if reason is None and attention not in MASKING:
        return f"attention {attention!r} of this {text.model_type} takes no mask; {', '.join(MASKING)} do"
    return reason


def why_no_leaves(config: PreTrainedConfig) -> str | None:
    """As `why_not_masked`, for the dense mask of a tree (see `with_leaves`), which FlexAttention does not take."""
    if config._attn_implementation == "flex_attention":
        return "attention 'flex_attention' takes block masks"
    return why_not_masked(config)


def unmasked_architecture(config: PreTrainedConfig) -> str | None:
    """As `why_not_masked`, whatever the attention implementation."""
    text = config.get_text_config()
    if text.model_type not in MASKED:
        return f"{text.model_type} is not among {', '.join(sorted(MASKED))}, whose attention follows any mask"
    values = text.to_dict()
    windows = {*(values.get("layer_types") or ())} - {"full_attention"}
    if windows or (values.get("sliding_window") and values.get("use_sliding_window", True)):
        return f"this {text.model_type} looks through a sliding window"
    return None


def dense_mask(seen: torch.Tensor, implementation: str, dtype: torch.dtype) -> torch.Tensor:
    """Give a mask the form that "sdpa" or "eager" attention takes.

    Args:
        seen: whether each query sees each key. Bool. Shape: (N, L, L).
        implementation: "sdpa" or "eager".
        dtype: of the model.

    Returns:
        bool, or 0 and the least number of `dtype`. Shape: (N, 1, L, L).
    """
    seen = seen[:, None]
    if implementation == "eager":
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    return seen


def with_leaves(seen: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """Add tokens behind a row, each of which sees what its parent sees, the parent, and itself: a tree's leaves.

    Args:
        seen: whether each of L queries sees each key. Bool. Shape: (N, L, L).
        parents: of each new token, an index into the L. Shape: (N, K).

    Returns:
        Shape: (N, L + K, L + K).
    """
    n, size, _ = seen.shape
    added = parents.shape[1]
    inherited = seen.gather(1, parents[:, :, None].expand(-1, -1, size))
    own = torch.eye(added, dtype=torch.bool, device=seen.device).expand(n, -1, -1)
    blind = torch.zeros(n, size, added, dtype=torch.bool, device=seen.device)
    return torch.cat([torch.cat([seen, blind], 2), torch.cat([inherited, own], 2)], 1)
