"""Language models with a value head, under the name that this kit has always read them by."""

from pathlib import Path

import torch

from icrm_lib.reward_model.model import RewardModel


def load_value_head(
    path: str | Path,
    *,
    base_model: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> RewardModel:
    """Load a reward model with a value head: `RewardModel.from_pretrained`, in float32 unless `dtype` says otherwise.

    Args, raises: see there.
    """
    return RewardModel.from_pretrained(
        path, base_model=base_model, revision=revision, device=device, dtype=dtype or torch.float32
    )
