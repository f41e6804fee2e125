"""The form "expected" against a naive float64 double loop, its gradient, and what it must not depend on."""

import math

import pytest
import torch
from formulas import log_sigmoid, naive_mean, ragged, seeded, sigmoid
from torch.autograd import gradcheck

from icrm_lib.objectives import CENTERINGS, Siblings, consistency_terms, pointwise_consistency_terms

EXPECTED = {"form": "expected", "weighting": "uniform"}


def data(seed, count=3, spread=2.0):
    rewards, mask, probs = ragged(seed, spread=spread)
    draws = torch.randn(*rewards.shape, count, generator=seeded(seed), dtype=torch.float64)
    likely = torch.rand(*rewards.shape, count, generator=seeded(seed + 1), dtype=torch.float64) / count
    return rewards, mask, probs, Siblings(spread * draws, likely)


def naive_expected(rewards, mask, siblings, centering="response", labels=None):
    """A and W, token by token."""
    rewards, mask, others, probs = (x.tolist() for x in (rewards, mask, *siblings))
    half, loss, scale, count = len(rewards) // 2, 0.0, 0.0, 0
    for row, values in enumerate(rewards):
        partner = (row + half) % len(rewards)
        if labels is None:
            mean, sign = naive_mean(rewards[partner], mask[partner], centering), 1 if row < half else -1
        else:
            mean, sign = 0.0, 1 if labels[row] else -1
        for t in range(len(values) - 1):
            if mask[row][t] and mask[row][t + 1]:
                here, following = (sign * (values[k] - mean) for k in (t, t + 1))
                drawn = list(zip(others[row][t], probs[row][t], strict=True))
                mean_u = sum(p * sigmoid(sign * (r - mean)) for r, p in drawn) / sum(p for _, p in drawn)
                loss -= mean_u * log_sigmoid(here) + (1 - mean_u) * log_sigmoid(-here)
                scale += 0.5 * (sigmoid(here) + sigmoid(following))
                count += 1
    return loss / count, scale / count


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [1, 3])
def test_terms_equal_the_double_loop(seed, count):
    rewards, mask, probs, siblings = data(seed, count)
    for centering in CENTERINGS:
        got = consistency_terms(rewards, mask, probs, siblings=siblings, centering=centering, **EXPECTED)
        want = naive_expected(rewards, mask, siblings, centering)
        assert torch.stack(got).tolist() == pytest.approx(want, rel=1e-12)
    labels = (torch.arange(8) + seed) % 3 == 0
    got = pointwise_consistency_terms(rewards, mask, probs, labels, siblings=siblings, **EXPECTED)
    assert torch.stack(got).tolist() == pytest.approx(naive_expected(rewards, mask, siblings, labels=labels), rel=1e-12)


def test_gradient_with_the_targets_held_fixed_and_none_through_siblings():
    rewards, mask, probs, siblings = data(3)
    rewards.requires_grad_(True)
    siblings.rewards.requires_grad_(True)
    signs = torch.tensor([1.0] * 4 + [-1.0] * 4).double()[:, None]
    means = torch.tensor([naive_mean(*row, "response") for row in zip(rewards.tolist(), mask.tolist(), strict=True)])
    means = means.double().roll(4)[:, None]
    with torch.no_grad():
        u = (signs[:, :, None] * (siblings.rewards - means[:, :, None])).sigmoid()
        target = (siblings.probs * u).sum(2) / siblings.probs.sum(2)
    pairs = mask[:, :-1] & mask[:, 1:]

    def surrogate(x):
        logits = signs * (x - means)
        entropies = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return entropies[:, :-1][pairs].mean()

    loss, scale = consistency_terms(rewards, mask, probs, siblings=siblings, **EXPECTED)
    assert gradcheck(surrogate, (rewards,)) and not scale.requires_grad
    want = torch.autograd.grad(surrogate(rewards), rewards)[0]
    got, through = torch.autograd.grad(loss, (rewards, siblings.rewards), allow_unused=True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-8)  # the naive means are float32
    assert through is None


def test_one_sibling_that_is_the_next_token_is_the_martingale():
    rewards, mask, probs, siblings = data(7, count=1)
    siblings = Siblings(torch.roll(rewards, -1, 1)[:, :, None], siblings.probs)
    got = consistency_terms(rewards, mask, probs, siblings=siblings, **EXPECTED)
    want = consistency_terms(rewards, mask, probs, form="martingale", weighting="uniform")
    assert torch.stack(got).tolist() == pytest.approx(torch.stack(want).tolist(), rel=1e-12)


@pytest.mark.parametrize("junk", [0.0, 1e30, math.nan, math.inf])
def test_siblings_behind_what_no_token_follows_change_nothing(junk):
    rewards, mask, probs, siblings = data(5)
    want = torch.stack(consistency_terms(rewards, mask, probs, siblings=siblings, **EXPECTED)).tolist()
    unread = torch.ones_like(mask)
    unread[:, :-1] = ~(mask[:, :-1] & mask[:, 1:])
    dirty = Siblings(*(part.masked_fill(unread[:, :, None], junk) for part in siblings))
    rewards = rewards.masked_fill(~mask, junk).requires_grad_(True)
    got = consistency_terms(rewards, mask, probs, siblings=dirty, **EXPECTED)
    assert torch.stack(got).tolist() == want
    got[0].backward()
    assert torch.isfinite(rewards.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [50.0, 500.0])
def test_extreme_rewards_stay_finite_and_right(dtype, size):
    signs = torch.tensor([[1, -1, -1, 1, 1, 0], [-1, 1, 1, 1, -1, -1]])
    rewards, mask = (size * signs).to(dtype).requires_grad_(True), torch.ones(2, 6, dtype=torch.bool)
    others = size * torch.stack([signs.roll(-1, 1), -signs], 2)
    siblings = Siblings(others.to(dtype), torch.tensor([0.25, 0.5]).expand(2, 6, 2).to(dtype))
    loss, scale = consistency_terms(rewards, mask, torch.ones(2, 6), siblings=siblings, **EXPECTED)
    assert (loss.item(), scale.item()) == pytest.approx(naive_expected(rewards, mask, siblings), rel=1e-5)
    loss.backward()
    assert torch.isfinite(rewards.grad).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"siblings": None}, "give siblings with form 'expected'"),
        ({"form": "martingale"}, "form 'martingale' with siblings"),
        ({"weighting": "probability"}, "choose 'uniform'"),
        ({"siblings": Siblings(torch.zeros(8, 12, 3), torch.zeros(8, 12, 3))}, r"\(N, T, K\)"),
    ],
)
def test_what_does_not_go_together_is_refused(change, message):
    rewards, mask, probs, siblings = data(1)
    options = EXPECTED | {"siblings": siblings} | change
    with pytest.raises(ValueError, match=message):
        consistency_terms(rewards, mask, probs, **options)
    with pytest.raises(ValueError, match=message):
        pointwise_consistency_terms(rewards, mask, probs, torch.ones(8), **options)
