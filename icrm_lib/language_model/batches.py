"""Token rows as batches: rows of like length together, padded to one tensor."""

from collections.abc import Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence


def padded(
    rows: Sequence[list[int]], pad_token_id: int, *, side: str = "right", seen: int = 0
) -> dict[str, torch.Tensor]:
    """Pad rows of token ids to one length.

    Args:
        rows: token ids, none empty. N lists.
        pad_token_id: padding id; it is masked.
        side: "right", so that causal attention never sees the padding, or "left", to generate.
        seen: tokens before each row that a KV cache holds; the mask covers them, too.

    Returns:
        `input_ids`, shape (N, T), and `attention_mask`, shape (N, seen + T).
    """
    ids = [torch.tensor(row) for row in rows]
    attended = [torch.ones(seen + len(row), dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id, padding_side=side),
        "attention_mask": pad_sequence(attended, batch_first=True, padding_side=side),
    }


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
