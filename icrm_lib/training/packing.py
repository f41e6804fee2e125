"""Padding-free batches: how responses are laid into full rows, and how a model is called with them."""

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from icrm_lib.reward_model.head import HeadOutput

MOST_PADDING = 0.05  # share of a packed batch that may be padding


def packing(lengths: list[int], width: int, *, one_row: bool = False) -> torch.Tensor:
    """Lay the rows of a right-padded batch into as many rows as possible that are full but for `MOST_PADDING`.

    Many short rows rather than one long one, because attention costs the square of a row's length where the kernel does
    not know of packing. Longest row first, each into the emptiest bin.

    Args:
        lengths: tokens of each row, >= 1.
        width: of the padded batch.
        one_row: put all into one row, for attention kernels that know of packing.

    Returns:
        Index into the flattened batch of each packed token, -1 where a bin ends early. Shape: (bins, longest bin).
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    for count in range(1 if one_row else len(lengths), 0, -1):
        bins: list[list[int]] = [[] for _ in range(count)]
        loads = [0] * count
        for row in order:
            emptiest = loads.index(min(loads))
            bins[emptiest].append(row)
            loads[emptiest] += lengths[row]
        if sum(loads) >= (1.0 - MOST_PADDING) * count * max(loads):
            break
    pack = torch.full((count, max(loads)), -1)
    for index, rows in enumerate(bins):
        places = [torch.arange(row * width, row * width + lengths[row]) for row in rows]
        pack[index, : loads[index]] = torch.cat(places)
    return pack


def call_packed(model: torch.nn.Module, head: HeadOutput, pack: torch.Tensor, hidden_rows: int) -> Callable:
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
