"""The rewards behind next tokens that nobody wrote: leaves below every response token, in one forward pass."""

from typing import NamedTuple

import torch

from icrm_lib.language_model.attention import dense_mask, why_no_leaves, with_leaves
from icrm_lib.reward_model.head import capture_head


class Tree(NamedTuple):
    """A padded batch of N rows and T columns, and behind each row M leaves.

    A leaf hangs below a response token that another one follows: it sees what that token sees, the token, and itself.
    Each response has a row of its own, as a leaf costs as much attention as its row is long.

    Attributes:
        tree_ids: token ids, those of the leaves last. Shape: (N, T + M).
        tree_parents: column of the token that a leaf hangs below. Shape: (N, M).
        tree_places: column of each leaf, 0 where there is none. Shape: (N, T, K).
    """

    tree_ids: torch.Tensor
    tree_parents: torch.Tensor
    tree_places: torch.Tensor


def with_siblings(input_ids: torch.Tensor, response_mask: torch.Tensor, sibling_ids: torch.Tensor) -> Tree:
    """Hang siblings of the next token below every response token but the last.

    Args:
        input_ids: right-padded batch. Shape: (N, T).
        response_mask: True on response tokens and the closing token. Bool. Shape: (N, T).
        sibling_ids: entry t stands in the place of token t + 1. Shape: (N, T, K).
    """
    (rows, width), count = input_ids.shape, sibling_ids.shape[2]
    bearing = response_mask[:, :-1] & response_mask[:, 1:]
    row, column = bearing.nonzero(as_tuple=True)
    rank = bearing.cumsum(1)[row, column] - 1  # the how-manyth bearing token of its row each one is
    slot = rank[:, None] * count + torch.arange(count)
    ids, parents = torch.zeros(2, rows, int(bearing.sum(1).max()) * count, dtype=torch.long).unbind()
    ids[row[:, None], slot], parents[row[:, None], slot] = sibling_ids[row, column], column[:, None]
    places = torch.zeros_like(sibling_ids)
    places[row, column] = width + slot
    return Tree(torch.cat([input_ids, ids], 1), parents, places)


def refuse_leaves(config, form: str) -> None:
    """Raise ValueError where a model does not follow the mask of a tree.

    Args:
        config: of the model, with the attention implementation it was loaded with.
        form: of the consistency term, for the message.
    """
    if reason := why_no_leaves(config):
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
    ids, parents, places = tree
    width = ids.shape[1] - parents.shape[1]
    columns = torch.arange(width, device=ids.device).expand(len(ids), -1)
    causal = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril().expand(len(ids), -1, -1)
    mask = dense_mask(with_leaves(causal, parents), attention, next(model.parameters()).dtype)
    positions = torch.cat([columns, parents + 1], 1)
    with capture_head(model) as head:
        model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return head.rewards.gather(1, places.flatten(1)).view(places.shape)
