"""The consistency term of adjacent prefixes, for pairs and for single responses with labels.

Notation of the paper (ICRM, arXiv 2506.09096): R raw token reward, u calibrated reward in (0, 1), p the generator's
probability of a token, w = chosen, l = rejected, sg = stop-gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from icrm_lib.objectives.forms import Siblings, at_other, check_form, token_losses
from icrm_lib.objectives.inputs import check_option, check_tokens, positive, widen

CENTERINGS = ("response", "positions", "none")
WEIGHTINGS = ("probability", "uniform", "inverted", "random_pairs")


def consistency_terms(
    rewards: torch.Tensor,
    response_mask: torch.Tensor,
    token_probs: torch.Tensor,
    *,
    centering: str = "response",
    form: str = "mutual_bce",
    weighting: str = "probability",
    td_lambda: float = 0.9,
    siblings: Siblings | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The consistency term of adjacent prefixes and its scale, before normalisation: A and W.

    Calibration (eqs. 4 and 5), every response centred on the mean of its partner:
        u^w_t = sigmoid(R^w_t - sg mean_k R^l_k),    u^l_t = 1 - sigmoid(R^l_t - sg mean_k R^w_k).
    Mutually weighted binary cross-entropy of adjacent tokens:
        ell_t = -1/2 [sg(u_{t+1}) log u_t + sg(u_t) log u_{t+1}]
        A = sum(ell_t p_{t+1} M_t) / sum(M_t),    W = sum((u_t + u_{t+1})/2 p_{t+1} M_t) / sum(M_t)
    with M_t = 1 where t and t+1 are both response tokens, pooled over all rows. Positions outside the mask
    (prompt, padding) never change either result, whatever they hold ("positions" excepted). The training loss is A / S
    with S the moving average of W (`training.ConsistencyScale`).

    The other forms of ell_t; A and W stay as above:
        plain_log   -1/2 [log u_t + log u_{t+1}], the reference implementation's ablation without mutual weights
        l1          |u_t - u_{t+1}|, gradient through both
        l2          (u_t - u_{t+1})^2, gradient through both
        martingale  -[sg(u_{t+1}) log u_t + (1 - sg(u_{t+1})) log(1 - u_t)], gradient through u_t only
        td_lambda   -[g_t log u_t + (1 - g_t) log(1 - u_t)], gradient through u_t only, with the lambda-return
                    g_t = (1 - lambda) sg(u_{t+1}) + lambda g_{t+1} where t+1 has a next response token, else 1 for
                    g_{t+1} (the label: u is the probability that it is right)
        dense       -log u_t, a Bradley-Terry loss at every token but the last, which the loss of the whole response
                    has: the token-level verifier of Cobbe et al. (arXiv 2110.14168) in pairs
        expected    -[e_t log u_t + (1 - e_t) log(1 - u_t)], gradient through u_t only, with the generator's own mean
                    e_t = sum_v p(v) sg(u(y_{<=t} v)) / sum_v p(v) over its K most probable next tokens v
    "martingale" is TD(0) with cross-entropy. Over y_{t+1} drawn from the generator its expectation is smallest at
    u_t = E[u_{t+1} | x, y_{<=t}], which is eq. (3) with n = m + 1. The data do the drawing, so it assumes responses
    of the generator and goes with "uniform": a weight p counts the probability of the draw twice. "td_lambda" (Sutton
    and Barto, chapter 12) goes with "uniform" for the same reason. It is "martingale" at lambda = 0 and "dense", the
    Monte Carlo target, at 1. "expected" is "martingale" with the expectation of eq. (3) in the place of the one token
    that was drawn: no noise of the draw, and the responses may be of another writer than the generator. It goes with
    "uniform", as the probabilities stand in e_t.

    Args:
        rewards: raw token rewards, rows 0..B-1 chosen, rows B..2B-1 the rejected partners. Shape: (2B, T).
        response_mask: True on response tokens and the closing token. Bool. Shape: (2B, T).
        token_probs: entry t = P_gen(token t | tokens < t), in [0, 1]. Shape: (2B, T). Ignored for "uniform".
        centering: "response" (mean over the partner's response tokens); "positions" (mean over all T positions of the
            partner's row as they are, a slip of the reference implementation: the prompt, and how much padding the
            batch happens to have and what it holds, change the loss); "none" (u^w = sigmoid(R^w),
            u^l = 1 - sigmoid(R^l)).
        form: "mutual_bce", "plain_log", "l1", "l2", "martingale", "td_lambda", "dense" or "expected".
        weighting: "probability"; "uniform" (p = 1, the control without a generator); "inverted" (1 - p_{t+1} for
            p_{t+1}); "random_pairs" (u_s for u_{t+1}, the weight p_{t+1} kept: s is uniform among the response tokens
            of the row but t and its two neighbours, first and last token being neighbours too; a row with fewer than
            four response tokens has M_t = 0; not for "td_lambda", whose return is over what follows).
        td_lambda: lambda of the form "td_lambda", in [0, 1].
        siblings: of the form "expected": raw rewards behind next tokens, calibrated with the row they belong to, and
            their probabilities; read where M_t = 1.
        generator: source of the draws of "random_pairs", torch's global one by default. The draws depend on the mask
            only through its response tokens, not through the padding.

    Returns:
        (A, W): two scalars (float32, or float64 for float64 rewards), A with gradient, W without. Both 0 when no row
        has two response tokens (four for "random_pairs").

    Raises:
        ValueError: shapes differ, an odd number of rows, an unknown option, or two that exclude each other.
    """
    if rewards.dim() != 2 or rewards.shape[0] % 2:
        raise ValueError(f"rewards must have shape (2B, T): B chosen rows, then B rejected; got {tuple(rewards.shape)}")
    check_tokens(rewards, response_mask=response_mask, token_probs=token_probs)
    check_option("centering", centering, CENTERINGS)
    check_option("weighting", weighting, WEIGHTINGS)
    check_form(form, weighting, td_lambda, rewards, siblings)
    rewards = widen(rewards)
    means, half = _partner_means(rewards, response_mask, centering), rewards.shape[0] // 2

    def calibrated(values: torch.Tensor) -> torch.Tensor:
        # Logits of u: +(R^w - mean R^l) for chosen rows, -(R^l - mean R^w) for rejected rows (eqs. 4 and 5).
        centred = values if means is None else values - means.view(-1, *[1] * (values.dim() - 1))
        return torch.cat([centred[:half], -centred[half:]])

    logits = calibrated(rewards.masked_fill(~response_mask, 0.0))  # nan of the padding must not reach a sum
    siblings = _calibrated_siblings(siblings, response_mask, calibrated)
    options = {"form": form, "td_lambda": td_lambda, "siblings": siblings}
    return _terms(logits, response_mask, token_probs, weighting, generator, options)


def pointwise_consistency_terms(
    rewards: torch.Tensor,
    response_mask: torch.Tensor,
    token_probs: torch.Tensor,
    labels: torch.Tensor,
    *,
    form: str = "mutual_bce",
    weighting: str = "probability",
    td_lambda: float = 0.9,
    siblings: Siblings | None = None,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and W of `consistency_terms` for responses with outcome labels instead of partners (math, code).

    Calibration (paper, section "pointwise form"), without centring:
        u_t = sigmoid(R_t) where z = 1,    u_t = 1 - sigmoid(R_t) where z = 0.
    From u on everything is as in `consistency_terms`.

    Args:
        rewards: raw token rewards, one row a response. Shape: (N, T).
        response_mask: True on response tokens and the closing token. Bool. Shape: (N, T).
        token_probs: entry t = P_gen(token t | tokens < t), in [0, 1]. Shape: (N, T). Ignored for "uniform".
        labels: z, 1 where the response is right and 0 where it is wrong. Bool, int or float. Shape: (N,).
        form, weighting, td_lambda, siblings, generator: see `consistency_terms`.

    Returns:
        (A, W), as `consistency_terms`.

    Raises:
        ValueError: shapes differ, a label is neither 0 nor 1, an unknown option, or two that exclude each other.
    """
    check_tokens(rewards, response_mask=response_mask, token_probs=token_probs)
    if labels.shape != rewards.shape[:1]:
        raise ValueError(
            f"labels must have one entry a row of rewards, shape {tuple(rewards.shape[:1])}; got {tuple(labels.shape)}"
        )
    check_option("weighting", weighting, WEIGHTINGS)
    check_form(form, weighting, td_lambda, rewards, siblings)
    right = positive(labels)

    def calibrated(values: torch.Tensor) -> torch.Tensor:
        return torch.where(right.view(-1, *[1] * (values.dim() - 1)), values, -values)

    logits = calibrated(widen(rewards).masked_fill(~response_mask, 0.0))
    siblings = _calibrated_siblings(siblings, response_mask, calibrated)
    options = {"form": form, "td_lambda": td_lambda, "siblings": siblings}
    return _terms(logits, response_mask, token_probs, weighting, generator, options)


def _terms(
    logits: torch.Tensor,
    response_mask: torch.Tensor,
    token_probs: torch.Tensor,
    weighting: str,
    generator: torch.Generator | None,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor]:
    # A and W from the logits of u on, which are arbitrary but finite outside the mask; `options` of `token_losses`.
    pairs = response_mask[:, :-1] & response_mask[:, 1:]  # M_t
    partners = None  # u_t is tied to u_{t+1}
    if weighting == "random_pairs":
        pairs = pairs & (response_mask.sum(1, keepdim=True) >= 4)  # with three, all tokens are neighbours
        partners = _random_partners(response_mask, pairs, generator)

    ell = token_losses(logits=logits, pairs=pairs, partners=partners, **options)
    u = F.logsigmoid(logits.detach()).exp()  # log-sigmoid: exact at |reward| = 50 and beyond
    weights = pairs.to(u.dtype)
    if weighting != "uniform":
        p = token_probs[:, 1:].to(u.dtype)
        # What padding holds (even nan) must not reach a sum: 0 * nan is nan, so it is replaced, not multiplied.
        weights = torch.where(pairs, 1.0 - p if weighting == "inverted" else p, 0.0)  # p_{t+1} M_t
    count = pairs.sum().clamp(min=1)
    loss = (ell * weights).sum() / count  # A
    scale = (0.5 * (at_other(u, partners) + u[:, :-1]) * weights).sum() / count  # W
    return loss, scale.detach()


def _random_partners(
    response_mask: torch.Tensor, pairs: torch.Tensor, generator: torch.Generator | None
) -> torch.Tensor:
    # Position s for every t in `pairs` (t itself elsewhere): of n response tokens the one k ranks on, k in 2..n-2,
    # round the end. One draw a pair, not one a position: the width of the padding does not move the random numbers.
    counts = response_mask.sum(1)
    rows, here = pairs.nonzero(as_tuple=True)
    n = counts[rows]
    device = response_mask.device if generator is None else generator.device
    draws = torch.randint(2**31, rows.shape, generator=generator, device=device).to(response_mask.device)
    steps = 2 + draws % (n - 3)  # uniform up to n / 2^31
    ranks = response_mask.cumsum(1)[rows, here] - 1
    tokens = response_mask.nonzero()[:, 1]  # of all rows, one after the other
    starts = (counts.cumsum(0) - counts)[rows]
    partners = torch.arange(pairs.shape[1], device=response_mask.device).repeat(pairs.shape[0], 1)
    partners[rows, here] = tokens[starts + (ranks + steps) % n]
    return partners


def _partner_means(rewards: torch.Tensor, response_mask: torch.Tensor, centering: str) -> torch.Tensor | None:
    # What each row is centred on: a mean of its partner's. Shape: (2B,).
    if centering == "none":
        return None
    if centering == "positions":
        means = rewards.detach().mean(1)
    else:
        inside = rewards.detach().masked_fill(~response_mask, 0.0)
        means = inside.sum(1) / response_mask.sum(1).clamp(min=1)
    return means.roll(len(means) // 2)


def _calibrated_siblings(
    siblings: Siblings | None, response_mask: torch.Tensor, calibrated: Callable[[torch.Tensor], torch.Tensor]
) -> Siblings | None:
    if siblings is None:
        return None
    # What stands elsewhere (even nan) must not reach a sum.
    outside = ~F.pad(response_mask[:, :-1] & response_mask[:, 1:], (0, 1))[:, :, None]
    rewards = calibrated(widen(siblings.rewards.detach()).masked_fill(outside, 0.0))
    return Siblings(rewards, siblings.probs.masked_fill(outside, 0.0))
