"""The reward that a DPO policy implies at every token."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedModel

from icrm_lib.generator import model_scorer


def implicit_rewards(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    rows: Sequence[list[int]],
    starts: Sequence[int],
    *,
    beta: float,
    pad_token_id: int,
) -> list[np.ndarray]:
    """Reward of every prefix that a DPO policy implies: beta times the log-ratio of policy and reference, summed.

    The log-ratio of one token is its advantage (arXiv 2404.12358), so the sum up to a token stands for the prefix.

    Args:
        policy: trained by `train_dpo`.
        reference: what it started from.
        rows: token ids.
        starts: index of the first response token in each row.
        beta: as in training.
        pad_token_id: padding id.

    Returns:
        per row float32, shape (len(row) - start,): the reward after each response token.
    """
    asked = list(zip(rows, starts, strict=True))
    sides = [model_scorer(model.eval(), pad_token_id)(asked) for model in (policy, reference)]
    return [np.cumsum(beta * (ours - theirs), dtype=np.float32) for ours, theirs in zip(*sides, strict=True)]
