"""ell_t, what the consistency term asks of one token: a tie to a neighbour, or a target made of what follows."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from icrm_lib.objectives.inputs import check_option

FORMS = ("mutual_bce", "plain_log", "l1", "l2", "martingale", "td_lambda", "dense", "expected")


class Siblings(NamedTuple):
    """What the generator would most probably write next, and the rewards that it would have.

    Attributes:
        rewards: raw rewards of the prefix up to t and each of K next tokens. Shape: (N, T, K).
        probs: the generator's probabilities of these, in [0, 1]. Shape: (N, T, K).
    """

    rewards: torch.Tensor
    probs: torch.Tensor


def check_form(form: str, weighting: str, td_lambda: float, rewards: torch.Tensor, siblings: Siblings | None) -> None:
    """Raise ValueError for an unknown form, a lambda out of range, or what the form has no use for."""
    check_option("form", form, FORMS)
    if not 0.0 <= td_lambda <= 1.0:
        raise ValueError(f"td_lambda must be in [0, 1], got {td_lambda}; 0 is the martingale form, 1 the dense one")
    if form == "td_lambda" and weighting == "random_pairs":
        raise ValueError(
            "form 'td_lambda' looks at all tokens that follow, weighting 'random_pairs' at one drawn instead; choose "
            "another weighting"
        )
    if form == "expected" and weighting != "uniform":
        raise ValueError(
            f"form 'expected' has the generator's probabilities in its target, and weighting {weighting!r} would count "
            "them twice; choose 'uniform'"
        )
    if (siblings is not None) != (form == "expected"):
        raise ValueError(f"form {form!r} with siblings={siblings}; give siblings with form 'expected' and no other")
    if siblings and not rewards.shape == siblings.rewards.shape[:2] == siblings.probs.shape[:2]:
        raise ValueError(
            f"siblings must have shape (N, T, K) for rewards of shape {tuple(rewards.shape)}; got "
            f"{tuple(siblings.rewards.shape)} and {tuple(siblings.probs.shape)}"
        )


def token_losses(
    form: str,
    logits: torch.Tensor,
    pairs: torch.Tensor,
    *,
    partners: torch.Tensor | None = None,
    td_lambda: float = 0.0,
    siblings: Siblings | None = None,
) -> torch.Tensor:
    """Return ell_t of every form that `consistency_terms` lists.

    Args:
        form: one of `FORMS`.
        logits: of u, finite everywhere. Shape: (N, T).
        pairs: M_t, where t and t+1 are response tokens. Bool. Shape: (N, T - 1).
        partners: s in the place of t+1, for "random_pairs". Shape: (N, T - 1).
        td_lambda: see `consistency_terms`.
        siblings: their `rewards` calibrated as `logits` are.

    Returns:
        arbitrary but finite outside `pairs`. Shape: (N, T - 1).
    """
    log_u = F.logsigmoid(logits)
    log_here, log_other = log_u[:, :-1], at_other(log_u, partners)
    if form in ("martingale", "td_lambda", "expected"):
        log_not_u = F.logsigmoid(-logits)  # log(1 - u) would be -inf from a logit of 18 on in float32
        # The targets of u and of 1 - u, apart: one minus the other would round to 0 where it is small.
        ends = {1.0: log_u.detach().exp(), 0.0: log_not_u.detach().exp()}
        if form == "martingale":
            target, not_target = (at_other(values, partners) for values in ends.values())
        elif form == "expected":
            target, not_target = (expectation(siblings, sign)[:, :-1] for sign in (1.0, -1.0))
        else:
            target, not_target = (lambda_returns(values, pairs, td_lambda, end) for end, values in ends.items())
        return -(target * log_here + not_target * log_not_u[:, :-1])
    if form == "dense":
        return -log_here
    if form == "plain_log":
        return -0.5 * (log_here + log_other)
    if form == "mutual_bce":
        u = log_u.detach().exp()  # sg
        return -0.5 * (at_other(u, partners) * log_here + u[:, :-1] * log_other)
    difference = log_here.exp() - log_other.exp()
    return difference.abs() if form == "l1" else difference.square()


def at_other(values: torch.Tensor, partners: torch.Tensor | None) -> torch.Tensor:
    """Return the values at t + 1, or at the partner of t. Shape: (N, T) -> (N, T - 1)."""
    return values[:, 1:] if partners is None else values.gather(1, partners)


def expectation(siblings: Siblings, sign: float) -> torch.Tensor:
    """Return sum_v p(v) sigmoid(sign R_v) / sum_v p(v), without gradient; 0 where no sibling has a probability.

    Shape: (N, T, K) -> (N, T).
    """
    probs = siblings.probs.to(siblings.rewards.dtype)
    values = F.logsigmoid(sign * siblings.rewards.detach()).exp()
    total = probs.sum(2)
    return (probs * values).sum(2) / torch.where(total > 0, total, 1.0)


def lambda_returns(values: torch.Tensor, pairs: torch.Tensor, td_lambda: float, end: float) -> torch.Tensor:
    """Return g_t = (1 - lambda) values_{t+1} + lambda g_{t+1}, with `end` for g at the last token of a response.

    Args:
        values: Shape: (N, T).
        pairs: where t and t+1 are response tokens. Bool. Shape: (N, T - 1).
        td_lambda: lambda, in [0, 1].
        end: the outcome, which stands behind the last token.

    Returns:
        `end` outside `pairs`. Shape: (N, T - 1).
    """
    returns = torch.full_like(values, end)
    for t in reversed(range(pairs.shape[1])):
        mixed = (1.0 - td_lambda) * values[:, t + 1] + td_lambda * returns[:, t + 1]
        returns[:, t] = torch.where(pairs[:, t], mixed, end)
    return returns[:, :-1]
