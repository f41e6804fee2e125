"""The score of a response as the mean of its token rewards, for models that were trained so (`pooling="mean"`)."""

import numpy as np
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from icrm_lib.language_model.causal import without_adapter


def is_mean(model: torch.nn.Module) -> bool:
    """Say whether a model scores a response by the mean of its token rewards."""
    return getattr(without_adapter(model).config, "icrm_pooling", "last") == "mean"


def note_pooling(model: torch.nn.Module, pooling: str) -> None:
    """Write into a model's configuration how it scores a response, "last" or "mean"; nothing where it says so already.

    Args:
        model: changed in place.
        pooling: of `training.ICRMConfig`.
    """
    if is_mean(model) != (pooling == "mean"):
        without_adapter(model).config.icrm_pooling = pooling


def running_means(rewards: np.ndarray) -> np.ndarray:
    """Return the mean of the rewards so far at each token: the score of each prefix.

    Args:
        rewards: of the tokens of one response, from its first on. Shape: (T,).

    Returns:
        float32. Shape: (T,).
    """
    counts = np.arange(1, len(rewards) + 1)
    return (np.cumsum(rewards, dtype=np.float64) / counts).astype(np.float32)


def mean_rewards(rewards: torch.Tensor, response_mask: torch.Tensor) -> SequenceClassifierOutput:
    """Return what a model answers whose score is the mean over the response.

    Args:
        rewards: at every position. Shape: (N, T).
        response_mask: True on response tokens and the closing token; at least one a row. Bool. Shape: (N, T).

    Returns:
        `logits` in float32 or wider. Shape: (N, 1).
    """
    wide = rewards.to(torch.promote_types(rewards.dtype, torch.float32)).masked_fill(~response_mask, 0.0)
    return SequenceClassifierOutput(logits=wide.sum(1, keepdim=True) / response_mask.sum(1, keepdim=True))
