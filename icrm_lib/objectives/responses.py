"""Losses of whole responses: preferences, outcomes, steps, and GRM's text regulariser."""

import torch
import torch.nn.functional as F

from icrm_lib.objectives.inputs import check_option, check_tokens, positive, widen

GRM_FORMS = ("sft", "dpo_noref", "dpo")


def bradley_terry_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    *,
    margin: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Negative log-likelihood of the preferences under the Bradley-Terry model.

    With d = chosen - rejected - margin: mean of -(1 - e) log sigmoid(d) - e log sigmoid(-d).

    Args:
        chosen: rewards of the chosen responses. Shape: (B,).
        rejected: rewards of the rejected responses. Shape: (B,).
        margin: rating difference subtracted from the reward difference. Shape: (B,).
        label_smoothing: e, the assumed probability that a label is wrong, in [0, 0.5).

    Returns:
        Scalar mean over the pairs.

    Raises:
        ValueError: shapes differ, or `label_smoothing` is out of range.
    """
    shapes = {tuple(t.shape) for t in (chosen, rejected, margin) if t is not None}
    if len(shapes) != 1 or chosen.dim() != 1:
        raise ValueError(f"chosen, rejected and margin must share one shape (B,), got {sorted(shapes)}")
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    difference = widen(chosen) - widen(rejected)
    if margin is not None:
        difference = difference - margin
    loss = -(1.0 - label_smoothing) * F.logsigmoid(difference)
    if label_smoothing:
        loss = loss - label_smoothing * F.logsigmoid(-difference)
    return loss.mean()


def positive_reward_penalty(chosen: torch.Tensor) -> torch.Tensor:
    """Penalty that keeps the chosen rewards positive ("positive regularisation", times 0.1 on top of Bradley-Terry).

    -log sigmoid(mean_i R^w_i), the mean being over the batch. It is no mean over pairs, so several processes, each
    with a part of the batch, compute another penalty than one.

    Args:
        chosen: rewards of the chosen responses. Shape: (B,).

    Returns:
        Scalar.

    Raises:
        ValueError: `chosen` is not of shape (B,).
    """
    if chosen.dim() != 1:
        raise ValueError(
            f"chosen must have shape (B,), got {tuple(chosen.shape)}; pass one reward a response, the one of its "
            "closing token"
        )
    return -F.logsigmoid(widen(chosen).mean())


def outcome_loss(rewards: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the closing reward with the outcome label (paper, section "pointwise form": L_out).

    Mean of -z log sigmoid(R) - (1 - z) log sigmoid(-R).

    Args:
        rewards: R, rewards of the responses. Shape: (N,).
        labels: z, 1 where the response is right and 0 where it is wrong. Bool, int or float. Shape: (N,).

    Returns:
        Scalar mean over the responses.

    Raises:
        ValueError: shapes differ, or a label is neither 0 nor 1.
    """
    if rewards.dim() != 1 or labels.shape != rewards.shape:
        raise ValueError(
            f"rewards and labels must share one shape (N,), got {tuple(rewards.shape)} and {tuple(labels.shape)}; "
            "pass one reward a response, the one of its closing token"
        )
    rewards = widen(rewards)
    return F.binary_cross_entropy_with_logits(rewards, positive(labels).to(rewards.dtype))


def process_loss(rewards: torch.Tensor, targets: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of token rewards with soft labels of the steps, the loss of a process reward model.

    Sum over the labelled positions of -q log sigmoid(R) - (1 - q) log sigmoid(-R), divided by their number, pooled over
    all rows. Other positions never change the loss or its gradient, whatever they hold.

    Args:
        rewards: R, raw token rewards. Shape: (N, T).
        targets: q, the probability that the process is right up to here, in [0, 1]. Shape: (N, T).
        labelled: True where `targets` holds a label. Bool. Shape: (N, T).

    Returns:
        Scalar mean over the labelled positions; 0, still with a gradient graph, when there is none.

    Raises:
        ValueError: shapes differ, `labelled` is not bool, or a target of a labelled position is outside [0, 1].
    """
    check_tokens(rewards, labelled=labelled, targets=targets)
    known = targets[labelled]
    wrong = known[~((known >= 0) & (known <= 1))]  # nan fails both comparisons and counts as wrong
    if wrong.numel():
        raise ValueError(
            f"targets must be in [0, 1] where labelled, got {wrong[0].item()}; mark what has no label in `labelled`"
        )
    rewards = widen(rewards).masked_fill(~labelled, 0.0)
    targets = targets.to(rewards.dtype).masked_fill(~labelled, 0.0)
    losses = F.binary_cross_entropy_with_logits(rewards, targets, reduction="none")
    return (losses * labelled).sum() / labelled.sum().clamp(min=1)


def grm_text_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor | None,
    *,
    form: str,
    beta: float = 0.1,
    reference_chosen: torch.Tensor | None = None,
    reference_rejected: torch.Tensor | None = None,
) -> torch.Tensor:
    """The text regulariser of GRM (Yang et al., arXiv 2406.10216), on top of `bradley_terry_loss`.

    With S(y) = sum_t log P_head(y_t | x, y_{<t}) through the frozen LM head, and S_ref the same of the reference model:
        sft         mean of -log sigmoid(beta S(y_w))
        dpo_noref   mean of -log sigmoid(beta [S(y_w) - S(y_l)])
        dpo         mean of -log sigmoid(beta [S(y_w) - S_ref(y_w) - S(y_l) + S_ref(y_l)])
    S is a sum, not a mean over tokens: long responses weigh more, and beta belongs to that size.

    Args:
        chosen: S(y_w) in nats. Shape: (B,).
        rejected: S(y_l) in nats. Shape: (B,). "sft" does not use it and takes None.
        form: "sft", "dpo_noref" or "dpo".
        beta: factor of the log-probabilities, > 0.
        reference_chosen: S_ref(y_w) in nats, a constant. Shape: (B,). For "dpo" only.
        reference_rejected: S_ref(y_l) in nats, a constant. Shape: (B,). For "dpo" only.

    Returns:
        Scalar mean over the pairs.

    Raises:
        ValueError: unknown form, `beta` is not positive, sums the form needs are missing or ones it has no use for are
            given, or shapes differ.
    """
    check_option("form", form, GRM_FORMS)
    _check_grm(form, beta, chosen, rejected, reference_chosen, reference_rejected)
    advantage = widen(chosen)
    if form != "sft":
        advantage = advantage - widen(rejected)
    if form == "dpo":
        advantage = advantage - (widen(reference_chosen) - widen(reference_rejected)).detach()
    return -F.logsigmoid(beta * advantage).mean()


def _check_grm(
    form: str,
    beta: float,
    chosen: torch.Tensor,
    rejected: torch.Tensor | None,
    reference_chosen: torch.Tensor | None,
    reference_rejected: torch.Tensor | None,
) -> None:
    if not beta > 0.0:
        raise ValueError(f"beta must be > 0, got {beta}; GRM uses 0.1")
    if form != "sft" and rejected is None:
        raise ValueError(f"form {form!r} compares both responses, but rejected is None; pass its sums or use 'sft'")
    references = {"reference_chosen": reference_chosen, "reference_rejected": reference_rejected}
    for name, tensor in references.items():
        if form == "dpo" and tensor is None:
            raise ValueError(f"form 'dpo' needs {name}, got None; pass the reference model's sums or use 'dpo_noref'")
        if form != "dpo" and tensor is not None:
            raise ValueError(f"form {form!r} has no reference model, but {name} is given; drop it or use 'dpo'")
    given = {"chosen": chosen, "rejected": rejected, **references}
    shapes = {name: tuple(tensor.shape) for name, tensor in given.items() if tensor is not None}
    if len(set(shapes.values())) != 1 or chosen.dim() != 1:
        raise ValueError(
            f"the log-probabilities must share one shape (B,), got {shapes}; sum them over the response's tokens"
        )
