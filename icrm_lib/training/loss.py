"""The loss of one batch, read from top to bottom as the equation stands (ICRM, arXiv 2506.09096).

L = w_text L_text + lambda A / S + (1 - lambda) L_bt
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from icrm_lib.objectives import (
    WEIGHTINGS,
    Siblings,
    bradley_terry_loss,
    consistency_terms,
    outcome_loss,
    pointwise_consistency_terms,
    positive_reward_penalty,
    process_loss,
)
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.scale import ConsistencyScale


@dataclass(frozen=True)
class Batch:
    """What the loss reads of a batch: rows 0..B-1 chosen, B..2B-1 their rejected partners.

    Attributes:
        closing: rewards at the closing tokens. Shape: (2B,).
        rewards: R, the head's output at every position. Shape: (2B, T).
        margin: rating differences. Shape: (B,).
        response_mask: True on response tokens and the closing token. Shape: (2B, T).
        token_probs: see `objectives.consistency_terms`; None stands for 1. Shape: (2B, T).
        siblings: see there. Shape: (2B, T, K).
        outcomes: z, labels of the responses. Shape: (2B,).
        step_values: labels of tokens, nan where there is none. Shape: (2B, T).
        reference: summed log-probabilities of the reference model. Shape: (2B,).
    """

    closing: torch.Tensor
    rewards: torch.Tensor
    margin: torch.Tensor | None = None
    response_mask: torch.Tensor | None = None
    token_probs: torch.Tensor | None = None
    siblings: Siblings | None = None
    outcomes: torch.Tensor | None = None
    step_values: torch.Tensor | None = None
    reference: torch.Tensor | None = None


@dataclass(frozen=True)
class Share:
    """One process's part of a step. DDP averages gradients over processes; these factors make that the mean over all.

    Attributes:
        pairs: factor of a mean over this process's pairs, 0 where it has none of its own.
        processes: how many train together.
        sum: adds a tensor up over the processes.
    """

    pairs: float = 1.0
    processes: int = 1
    sum: Callable[[torch.Tensor], torch.Tensor] = lambda value: value

    def of_tokens(self, count: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Factor of a mean over `count` of this process's tokens, of `total` on all processes."""
        return count * self.processes / total.clamp(min=1)


ALONE = Share()


def icrm_loss(
    batch: Batch,
    args: ICRMConfig,
    scale: ConsistencyScale,
    share: Share = ALONE,
    *,
    trl_loss: torch.Tensor | None = None,
    text_loss: Callable[[], torch.Tensor] | None = None,
    training: bool = True,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Compute the loss of a batch and its parts.

    Args:
        batch: of this process.
        args: weights and forms of the terms.
        scale: S, moved on while training.
        share: of this process; one that trains alone by default.
        trl_loss: TRL's Bradley-Terry loss of the same batch, taken as it is where nothing of ours changes it.
        text_loss: L_text, called where it has a weight.
        training: whether S moves on.

    Returns:
        (L, parts): a scalar with gradient, and by name what the trainer logs, each a scalar.
    """
    lam, text_weight = args.consistency_weight, args.sft_weight
    response = _response_loss(batch, args, share, trl_loss)  # L_bt, or a loss of labels in its place
    parts = {{"bradley_terry": "bt"}.get(args.loss, args.loss) + "_loss": response}
    if args.positive_weight > 0:
        parts["positive_loss"] = positive_reward_penalty(batch.closing.chunk(2)[0]) * share.pairs
        response = response + args.positive_weight * parts["positive_loss"]
    loss = (1.0 - lam) * response
    if text_weight > 0 and args.text_form != "mean_nll":
        loss = (1.0 - text_weight) * loss  # GRM's alpha: (1 - alpha) L_bt + alpha L_text

    if lam > 0:
        mask, probs = batch.response_mask, batch.token_probs
        if probs is None:
            probs = torch.ones_like(mask, dtype=torch.float32)  # p = 1
        term, weights = _consistency_terms(batch, probs, args)  # A and W of eqs. (4) and (5) and the term on them
        adjacent = mask[:, 1:] & mask[:, :-1]  # M_t
        count = adjacent.sum().to(weights.dtype) * (share.pairs > 0)
        weight_sum, total = share.sum(torch.stack([weights * count, count]))
        if training:
            scale.update(weight_sum / total.clamp(min=1))  # S <- 0.95 S + 0.05 W
        running = scale.value.to(term.device)
        regulariser = term * share.of_tokens(count, total) / running  # L_reg = A / S
        loss = loss + lam * regulariser
        parts["generator_probability"] = (probs[:, 1:] * adjacent).sum() / adjacent.sum().clamp(min=1)
        parts |= {"consistency_loss": regulariser, "consistency_scale": running}

    if text_weight > 0:
        parts["sft_loss"] = text_loss() * share.pairs  # L_text
        loss = loss + text_weight * parts["sft_loss"]
    if batch.response_mask is not None:
        parts["token_reward_std"] = _spread(batch.rewards, batch.response_mask)
    return loss, parts


def _response_loss(batch: Batch, args: ICRMConfig, share: Share, trl_loss: torch.Tensor | None) -> torch.Tensor:
    """TRL's Bradley-Terry loss as it is, ours with smoothed labels, or one of the pointwise losses."""
    if args.loss == "outcome":
        return outcome_loss(batch.closing, batch.outcomes) * share.pairs
    if args.loss == "process":
        labelled = ~batch.step_values.isnan()
        count = labelled.sum() * (share.pairs > 0)
        return process_loss(batch.rewards, batch.step_values, labelled) * share.of_tokens(count, share.sum(count))
    if trl_loss is not None and not args.label_smoothing:
        return trl_loss
    chosen, rejected = batch.closing.chunk(2)
    loss = bradley_terry_loss(chosen, rejected, margin=batch.margin, label_smoothing=args.label_smoothing)
    if args.center_rewards_coefficient is not None:  # as TRL does
        loss = loss + args.center_rewards_coefficient * (chosen + rejected).square().mean()
    return loss * share.pairs


def _consistency_terms(batch: Batch, probs: torch.Tensor, args: ICRMConfig) -> tuple[torch.Tensor, torch.Tensor]:
    # Weights that the data bring stand in the place of the probabilities.
    weighting = args.weighting if args.weighting in WEIGHTINGS else "probability"
    options = {"form": args.form, "weighting": weighting, "td_lambda": args.td_lambda, "siblings": batch.siblings}
    if args.loss == "bradley_terry":
        return consistency_terms(batch.rewards, batch.response_mask, probs, centering=args.centering, **options)
    return pointwise_consistency_terms(batch.rewards, batch.response_mask, probs, batch.outcomes, **options)


def _spread(rewards: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the responses of the standard deviation of their token rewards."""
    with torch.no_grad():
        rewards = rewards.float().masked_fill(~mask, 0.0)
        count = mask.sum(1).clamp(min=1)
        mean = rewards.sum(1) / count
        return ((rewards - mean[:, None]).square() * mask).sum(1).div(count).sqrt().mean()
