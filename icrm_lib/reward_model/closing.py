"""The closing readout: the reward that a prefix would have if the response ended there.

A Bradley-Terry model learns its rewards at the closing token alone, so at any other token it says what it was never
taught. Here the closing tokens are put behind every prefix: as leaves of a tree in the same forward pass, one token a
prefix, where the attention follows a mask, else one row a prefix.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from transformers import PreTrainedModel

from icrm_lib.language_model.attention import dense_mask, why_no_leaves, with_leaves
from icrm_lib.language_model.causal import batches_of, padded
from icrm_lib.language_model.positions import refuse_too_long, steady_length
from icrm_lib.reward_model.head import capture_head
from icrm_lib.reward_model.scoring import TOKENS_PER_BATCH, token_scores

Readout = Literal["place", "closing"]


def check_readout(readout: str) -> str:
    """Return a readout, or raise ValueError for an unknown one."""
    if readout not in get_args(Readout):
        raise ValueError(f"readout is {readout!r}; give {' or '.join(map(repr, get_args(Readout)))}")
    return readout


@torch.inference_mode()
def closing_scores(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    starts: Sequence[int],
    closing: Sequence[int],
    *,
    pad_token_id: int,
    batch_size: int | None = None,
) -> list[np.ndarray]:
    """Read, for each token of each row from a position on, the reward at closing tokens put behind it.

    Where a row ends with the closing tokens itself, all of these have the reward of the last: the score of the whole.

    Args:
        model: one-label sequence classification model with a reward at every position, in evaluation mode.
        rows: token ids. N lists, none empty.
        starts: first position asked for, one a row.
        closing: what stands behind a finished response, up to the token at which its score is read; at least one.
        pad_token_id: padding id; it is masked, so any will do.
        batch_size: most rows of one forward pass; as many as `scoring.TOKENS_PER_BATCH` tokens allow when None.

    Returns:
        per row float32 rewards. Shape of each: (len(row) - start,).

    Raises:
        SequenceTooLong: a row with the closing tokens is longer than the model's positions.
    """
    rows, closing = [list(row) for row in rows], list(closing)
    ended = [row[-len(closing) :] == closing and len(row) > len(closing) for row in rows]
    # Of a row that ends itself the tokens before the closing ones are open, of any other all.
    stops = [len(row) - len(closing) * end for row, end in zip(rows, ended, strict=True)]
    lengths = [stop + len(closing) for stop in stops]
    refuse_too_long(model.config, lengths)
    steady = steady_length(model.config)
    bare = why_no_leaves(model.config) is not None
    leafless = [i for i, length in enumerate(lengths) if bare or (steady is not None and length > steady)]
    results: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(rows)
    for i in leafless:
        results[i] = _row_a_prefix(model, rows[i], starts[i], stops[i], closing, pad_token_id, batch_size)
    sizes = [stop + len(closing) * max(stop - start, 1) for start, stop in zip(starts, stops, strict=True)]
    members = sorted(set(range(len(rows))).difference(leafless))
    for batch in batches_of(members, sizes, tokens=TOKENS_PER_BATCH, rows=batch_size):
        places = [list(range(min(starts[i], stops[i] - 1), stops[i])) for i in batch]
        rewards = _leaves(model, [rows[i][: stops[i]] for i in batch], places, closing, pad_token_id)
        for i, values in zip(batch, rewards, strict=True):
            results[i] = values
    for i, values in enumerate(results):
        # The last prefix with the closing tokens is the whole row: they share its score.
        whole = np.concatenate([values, np.full(len(rows[i]) - stops[i], values[-1], dtype=np.float32)])
        results[i] = whole[len(whole) - (len(rows[i]) - starts[i]) :]
    return results


def _leaves(
    model: PreTrainedModel, rows: list[list[int]], places: list[list[int]], closing: list[int], pad_token_id: int
) -> list[np.ndarray]:
    """One forward pass over rows and, behind each of their places, the closing tokens."""
    ids = padded(rows, pad_token_id, device=model.device)["input_ids"]
    n, width = ids.shape
    counts = [len(at) for at in places]
    most = max(counts)
    parents = torch.tensor([[*at, *[0] * (most - len(at))] for at in places], device=model.device)
    positions = torch.arange(width, device=model.device).expand(n, -1)
    seen = torch.ones(width, width, dtype=torch.bool, device=model.device).tril().expand(n, -1, -1)
    behind, tokens, below = parents, [ids], parents
    for token in closing:  # each the leaf of the one before
        seen = with_leaves(seen, below)
        tokens.append(torch.full_like(behind, token))
        behind = behind + 1
        positions = torch.cat([positions, behind], 1)
        below = torch.arange(seen.shape[1] - most, seen.shape[1], device=model.device).expand(n, -1)
    mask = dense_mask(seen, model.config._attn_implementation, model.dtype)
    with capture_head(model) as head:
        model(input_ids=torch.cat(tokens, 1), attention_mask=mask, position_ids=positions, use_cache=False)
    last = head.rewards[:, -most:].float().cpu().numpy()
    return [values[:count].copy() for values, count in zip(last, counts, strict=True)]


def _row_a_prefix(
    model: PreTrainedModel,
    row: list[int],
    start: int,
    stop: int,
    closing: list[int],
    pad_token_id: int,
    batch_size: int | None,
) -> np.ndarray:
    """The slow way, for architectures that follow no mask: what the prefixes share before `start` is computed once."""
    first = min(start, stop - 1)
    prefixes = [row[: place + 1] + closing for place in range(first, stop)]
    ends, shared = [len(prefix) - 1 for prefix in prefixes], [start] * len(prefixes)
    options = {"pad_token_id": pad_token_id, "batch_size": batch_size, "shared": shared}
    return np.concatenate(token_scores(model, prefixes, ends, **options))
