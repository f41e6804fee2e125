"""The objectives written out naively, token by token, and batches to compare them on."""

import math

import torch


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def naive_ell(form, a, b):
    """ell of a pair with logits a (here) and b (the other), in Python floats."""
    if form == "mutual_bce":
        return -0.5 * (sigmoid(b) * log_sigmoid(a) + sigmoid(a) * log_sigmoid(b))
    if form == "dense":
        return -log_sigmoid(a)
    if form == "plain_log":
        return -0.5 * (log_sigmoid(a) + log_sigmoid(b))
    if form == "martingale":
        return -(sigmoid(b) * log_sigmoid(a) + sigmoid(-b) * log_sigmoid(-a))
    return abs(sigmoid(a) - sigmoid(b)) ** {"l1": 1, "l2": 2}[form]


def naive_return(logits, inside, t, td_lambda):
    """The lambda-return of u and of 1 - u at t, term by term (forward view)."""
    end = t
    while end + 1 < len(inside) and inside[end + 1]:
        end += 1
    steps = range(1, end - t + 1)
    g, rest = (
        (1 - td_lambda) * sum(td_lambda ** (n - 1) * sigmoid(sign * logits[t + n]) for n in steps) for sign in (1, -1)
    )
    return g + td_lambda ** (end - t), rest  # behind the last token stands the label, 1


def naive_mean(row, inside, centering):
    """What a row's partner is centred on."""
    if centering == "none":
        return 0.0
    values = [r for r, m in zip(row, inside, strict=True) if m or centering == "positions"]
    return sum(values) / max(len(values), 1)


def naive_terms(
    rewards,
    mask,
    probs,
    weighting="probability",
    form="mutual_bce",
    centering="response",
    labels=None,
    partners=None,
    td_lambda=0.9,
):
    """A and W straight from the formulas, token by token, in Python floats (float64).

    With `labels` the pointwise terms. `partners[row][t]` is s for "random_pairs", None where t has no partner.
    """
    rows, half = len(rewards), len(rewards) // 2
    loss = scale = count = 0.0
    for row in range(rows):
        if labels is None:
            partner = (row + half) % rows
            mean, sign = naive_mean(rewards[partner], mask[partner], centering), 1 if row < half else -1
        else:
            mean, sign = 0.0, 1 if labels[row] else -1
        logits = [sign * (reward - mean) for reward in rewards[row]]
        for t in range(len(mask[row]) - 1):
            other = t + 1 if partners is None else partners[row][t]
            if not (mask[row][t] and mask[row][t + 1]) or other is None:
                continue
            a, b = logits[t], logits[other]
            p = probs[row][t + 1]
            p = {"uniform": 1.0, "inverted": 1.0 - p}.get(weighting, p)
            if form == "td_lambda":
                g, rest = naive_return(logits, mask[row], t, td_lambda)
                loss += -(g * log_sigmoid(a) + rest * log_sigmoid(-a)) * p
            else:
                loss += naive_ell(form, a, b) * p
            scale += 0.5 * (sigmoid(a) + sigmoid(b)) * p
            count += 1
    return loss / max(count, 1), scale / max(count, 1)


def batch(seed, rows=6, length=11, spread=2.0):
    """Random rewards, contiguous response masks of random extent (at least two tokens), probabilities."""
    generator = torch.Generator().manual_seed(seed)
    rewards = spread * torch.randn(rows, length, generator=generator)
    mask = torch.zeros(rows, length, dtype=torch.bool)
    for row in range(rows):
        start = int(torch.randint(0, length - 4, (1,), generator=generator))
        end = int(torch.randint(start + 2, length + 1, (1,), generator=generator))
        mask[row, start:end] = True
    return rewards, mask, torch.rand(rows, length, generator=generator)


def ragged(seed, rows=8, length=13, spread=2.0):
    """Float64 rewards, masks with holes and rows of 0, 1, 2 and 3 neighbouring tokens among them, probabilities."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, length, generator=generator) < 0.7
    for tokens, row in enumerate(torch.randperm(rows, generator=generator)[:4].tolist()):
        start = int(torch.randint(0, length - 4, (1,), generator=generator))
        mask[row] = False
        mask[row, start : start + tokens] = True
    rewards = spread * torch.randn(rows, length, generator=generator, dtype=torch.float64)
    return rewards, mask, torch.rand(rows, length, generator=generator, dtype=torch.float64)


def seeded(seed):
    return torch.Generator().manual_seed(seed)
