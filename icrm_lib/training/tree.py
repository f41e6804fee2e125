"""The rewards behind next tokens that nobody wrote: leaves below every response token, in one forward pass."""

from typing import NamedTuple

import torch

from icrm_lib.language_model.attention import dense_mask, why_not_masked, with_leaves
from icrm_lib.reward_model.head import capture_head
from icrm_lib.training.packing import Packing, seen_by


class Tree(NamedTuple):
    """A packed batch of R rows and L columns, and behind each row M leaves.

    A leaf hangs below a response token that another one follows: it sees what that token sees, the token, and itself.

    Attributes:
        tree_ids: token ids, those of the leaves last. Shape: (R, L + M).
        tree_positions: their positions. Shape: (R, L + M).
        tree_segments: `segments` of the packing. Shape: (R, L).
        tree_parents: column of the token that a leaf hangs below. Shape: (R, M).
        tree_places: index into the flattened tree of each leaf, 0 where there is none. Shape: (N, T, K).
    """

    tree_ids: torch.Tensor
    tree_positions: torch.Tensor
    tree_segments: torch.Tensor
    tree_parents: torch.Tensor
    tree_places: torch.Tensor


def with_siblings(
    input_ids: torch.Tensor, response_mask: torch.Tensor, sibling_ids: torch.Tensor, packed: Packing
) -> Tree:
    """Hang siblings of the next token below every response token but the last.

    Args:
        input_ids: padded batch. Shape: (N, T).
        response_mask: True on response tokens and the closing token. Bool. Shape: (N, T).
        sibling_ids: entry t stands in the place of token t + 1. Shape: (N, T, K).
        packed: where the tokens of the batch lie.
    """
    tokens, segments, places = packed
    (rows, length), (_, width, count) = tokens.shape, sibling_ids.shape
    n, t = (response_mask[:, :-1] & response_mask[:, 1:]).nonzero(as_tuple=True)
    row, column = places[n, t] // length, places[n, t] % length
    # The how-manyth bearing token of its row each one is.
    order, bearing = row.argsort(stable=True), row.bincount(minlength=rows)
    rank = torch.empty_like(row)
    rank[order] = torch.arange(len(row)) - (bearing.cumsum(0) - bearing)[row[order]]
    slot = rank[:, None] * count + torch.arange(count)
    most = int(bearing.max()) * count
    ids, positions, parents = torch.zeros(3, rows, most, dtype=torch.long).unbind()
    row = row[:, None]
    ids[row, slot], positions[row, slot], parents[row, slot] = sibling_ids[n, t], t[:, None] + 1, column[:, None]
    tree_places = torch.zeros_like(sibling_ids)
    tree_places[n, t] = row * (length + most) + length + slot
    trunk = torch.where(tokens >= 0, input_ids.flatten()[tokens.clamp(min=0)], 0)
    trunk_positions = torch.where(tokens >= 0, tokens % width, 0)
    both = torch.cat([trunk, ids], 1), torch.cat([trunk_positions, positions], 1)
    return Tree(*both, segments, parents, tree_places)


def refuse_leaves(config, form: str) -> None:
    """Raise ValueError where a model does not follow the mask of a tree.

    Args:
        config: of the model, with the attention implementation it was loaded with.
        form: of the consistency term, for the message.
    """
    reason = why_not_masked(config)
    if config._attn_implementation == "flex_attention":
        reason = "attention 'flex_attention' takes block masks"
    if reason:
        raise ValueError(
            f"form={form!r} hangs next tokens below every token of a row, but {reason}; load the model with attention "
            "'sdpa' or 'eager' where that is the cause, else choose another form"
        )


def sibling_rewards(model: torch.nn.Module, tree: Tree, attention: str) -> torch.Tensor:
    """Return the reward at every leaf.

    Args:
        model: a one-label sequence classification model, or a wrapper around it.
        tree: the batch.
        attention: the model's attention implementation, "sdpa" or "eager".

    Returns:
        arbitrary where there is no leaf. Shape: (N, T, K).
    """
    seen = with_leaves(seen_by(tree.tree_segments), tree.tree_parents)
    mask = dense_mask(seen, attention, next(model.parameters()).dtype)
    with capture_head(model) as head:
        model(input_ids=tree.tree_ids, attention_mask=mask, position_ids=tree.tree_positions, use_cache=False)
    return head.rewards.flatten()[tree.tree_places]
