"""The losses. Every reward is a raw one (a logit), never a probability; all arithmetic is in float32 or wider.

Notation of the paper (ICRM, arXiv 2506.09096): R raw token reward, u calibrated reward in (0, 1), p the generator's
probability of a token, w = chosen, l = rejected, sg = stop-gradient.
"""

import torch
import torch.nn.functional as F

CENTERINGS = ("response",)
FORMS = ("mutual_bce",)
WEIGHTINGS = ("probability", "uniform")


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
    difference = _widen(chosen) - _widen(rejected)
    if margin is not None:
        difference = difference - margin
    loss = -(1.0 - label_smoothing) * F.logsigmoid(difference)
    if label_smoothing:
        loss = loss - label_smoothing * F.logsigmoid(-difference)
    return loss.mean()


def consistency_terms(
    rewards: torch.Tensor,
    response_mask: torch.Tensor,
    token_probs: torch.Tensor,
    *,
    centering: str = "response",
    form: str = "mutual_bce",
    weighting: str = "probability",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The consistency term of adjacent prefixes and its scale, before normalisation: A and W.

    Calibration (eqs. 4 and 5), every response centred on the mean of its partner:
        u^w_t = sigmoid(R^w_t - sg mean_k R^l_k),    u^l_t = 1 - sigmoid(R^l_t - sg mean_k R^w_k).
    Mutually weighted binary cross-entropy of adjacent tokens:
        ell_t = -1/2 [sg(u_{t+1}) log u_t + sg(u_t) log u_{t+1}]
        A = sum(ell_t p_{t+1} M_t) / sum(M_t),    W = sum((u_t + u_{t+1})/2 p_{t+1} M_t) / sum(M_t)
    with M_t = 1 where t and t+1 are both response tokens, pooled over all rows. Positions outside the mask
    (prompt, padding) never change either result, whatever they hold. The training loss is A / S with S the moving
    average of W (`training.ConsistencyScale`).

    Args:
        rewards: raw token rewards, rows 0..B-1 chosen, rows B..2B-1 the rejected partners. Shape: (2B, T).
        response_mask: True on response tokens and the closing token. Bool. Shape: (2B, T).
        token_probs: entry t = P_gen(token t | tokens < t), in [0, 1]. Shape: (2B, T). Ignored for "uniform".
        centering: "response" (mean over the partner's response tokens).
        form: "mutual_bce".
        weighting: "probability", or "uniform" (p = 1, the control without a generator).

    Returns:
        (A, W): two scalars (float32, or float64 for float64 rewards), A with gradient, W without. Both 0 when no row
        has two response tokens.

    Raises:
        ValueError: shapes differ, an odd number of rows, or an unknown option.
    """
    _check_terms(rewards, response_mask, token_probs)
    _check_option("centering", centering, CENTERINGS)
    _check_option("form", form, FORMS)
    _check_option("weighting", weighting, WEIGHTINGS)

    # What padding holds (even nan) must not reach a sum: 0 * nan is nan, so it is replaced, not multiplied.
    rewards = _widen(rewards).masked_fill(~response_mask, 0.0)
    log_u = F.logsigmoid(_calibrated(rewards, response_mask))  # log-sigmoid: exact at |reward| = 50 and beyond
    u = log_u.detach().exp()

    ell = -0.5 * (u[:, 1:] * log_u[:, :-1] + u[:, :-1] * log_u[:, 1:])  # ell_t; u carries no gradient (sg)
    adjacent = response_mask[:, :-1] & response_mask[:, 1:]  # M_t
    weights = adjacent.to(u.dtype)
    if weighting == "probability":
        weights = torch.where(adjacent, token_probs[:, 1:].to(u.dtype), 0.0)  # p_{t+1} M_t
    count = adjacent.sum().clamp(min=1)
    loss = (ell * weights).sum() / count  # A
    scale = (0.5 * (u[:, 1:] + u[:, :-1]) * weights).sum() / count  # W
    return loss, scale.detach()


def _widen(rewards: torch.Tensor) -> torch.Tensor:
    # bfloat16 keeps 8 bits: a difference of two rewards near 50 would be off by a quarter.
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32))


def _calibrated(rewards: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    # Logits of u: +(R^w - mean R^l) for chosen rows, -(R^l - mean R^w) for rejected rows (eqs. 4 and 5).
    means = rewards.detach().sum(1) / response_mask.sum(1).clamp(min=1)
    half = rewards.shape[0] // 2
    partner_means = torch.cat([means[half:], means[:half]])
    centred = rewards - partner_means[:, None]
    return torch.cat([centred[:half], -centred[half:]])


def _check_terms(rewards: torch.Tensor, response_mask: torch.Tensor, token_probs: torch.Tensor) -> None:
    if rewards.dim() != 2 or rewards.shape[0] % 2:
        raise ValueError(f"rewards must have shape (2B, T): B chosen rows, then B rejected; got {tuple(rewards.shape)}")
    for name, tensor in (("response_mask", response_mask), ("token_probs", token_probs)):
        if tensor.shape != rewards.shape:
            raise ValueError(
                f"{name} must have the shape of rewards, {tuple(rewards.shape)}; got {tuple(tensor.shape)}"
            )
    if response_mask.dtype != torch.bool:
        raise ValueError(f"response_mask must be bool, got {response_mask.dtype}; use mask.bool()")


def _check_option(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
