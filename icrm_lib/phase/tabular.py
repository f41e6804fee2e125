"""A reward model without a network: one reward for each state of the grammar, trained with the kit's own objective.

It knows the state exactly, so it says what a weighting does to the optimum, apart from what a network makes of it.
"""

from typing import Literal

import numpy as np
import torch

from icrm_lib.objectives import bradley_terry_loss, consistency_terms
from icrm_lib.phase.responses import Responses
from icrm_lib.training.scale import ConsistencyScale

Weights = Literal["probability", "uniform", "shuffled", "inverted"]
WEIGHTINGS: tuple[Weights, ...] = ("probability", "uniform", "shuffled", "inverted")


class Batch:
    """Pairs as tensors, laid out once for all weightings. Rows as in `Responses`; float32.

    Args:
        responses: pairs to train on.
        seed: of the order into which the probabilities of a response are shuffled.
    """

    def __init__(self, responses: Responses, seed: int = 0):
        self.states, self.mask = torch.from_numpy(responses.states), torch.from_numpy(responses.mask)
        self.probs = torch.from_numpy(responses.probs).float()
        shuffled = np.zeros_like(responses.probs)
        order = np.random.default_rng([seed, 1]).random(responses.mask.shape)
        # Both orders list the tokens row by row: places as they are, values by a random number within their row.
        order = np.argsort(np.where(responses.mask, order, 2.0), axis=1)
        shuffled[responses.mask] = np.take_along_axis(responses.probs, order, axis=1)[responses.mask]
        self.shuffled = torch.from_numpy(shuffled).float()
        self.closing = torch.from_numpy(responses.closing_states())

    def rows(self, pairs: torch.Tensor) -> torch.Tensor:
        """Rows of some pairs, chosen before rejected."""
        return torch.cat([pairs, pairs + len(self.mask) // 2])


def fit_table(
    batch: Batch,
    n_states: int,
    weighting: Weights,
    *,
    consistency_weight: float = 0.6,
    learning_rate: float = 0.1,
    steps: int = 300,
    batch_size: int = 512,
    seed: int = 0,
) -> np.ndarray:
    """Train a table of rewards with L = lambda A / S + (1 - lambda) L_bt, as `training.loss` mixes them.

    Adam on batches that go through the pairs in random order; the learning rate falls to 0 along a cosine.

    Args:
        batch: training pairs.
        n_states: rewards in the table.
        weighting: "probability" (p), "uniform" (1), "shuffled" (p of the response's other tokens), "inverted" (1 - p).
        consistency_weight: lambda, in [0, 1).
        learning_rate: of the first step.
        steps: of Adam.
        batch_size: pairs a step; all pairs where there are fewer.
        seed: of the order of pairs.

    Returns:
        the reward of each state, 0 where training never came. float64. Shape: (n_states,).
    """
    table = torch.zeros(n_states, requires_grad=True)
    optimiser = torch.optim.Adam([table], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    scale, orders = ConsistencyScale(), torch.Generator().manual_seed(seed)
    n_pairs, queue = len(batch.mask) // 2, torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(queue) < min(batch_size, n_pairs):
            queue = torch.randperm(n_pairs, generator=orders)
        pairs, queue = queue[:batch_size], queue[batch_size:]
        loss = table_loss(table, batch, batch.rows(pairs), weighting, scale, consistency_weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return table.detach().double().numpy()


def table_loss(
    table: torch.Tensor,
    batch: Batch,
    rows: torch.Tensor,
    weighting: Weights,
    scale: ConsistencyScale,
    consistency_weight: float,
) -> torch.Tensor:
    """Compute L of some rows of a batch, chosen before rejected, and move S on. A scalar with gradient."""
    shuffled = weighting == "shuffled"
    probs = (batch.shuffled if shuffled else batch.probs)[rows]
    form = "probability" if shuffled else weighting
    term, weight = consistency_terms(table[batch.states[rows]], batch.mask[rows], probs, weighting=form)
    regulariser = term / scale.update(weight)  # L_reg = A / S
    loss_bt = bradley_terry_loss(*table[batch.closing[rows]].chunk(2))
    return consistency_weight * regulariser + (1.0 - consistency_weight) * loss_bt
