"""The objective against a naive float64 double loop, its gradient, and everything it must not depend on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from icrm_lib.objectives import bradley_terry_loss, consistency_terms


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def naive_terms(rewards, mask, probs, weighting="probability"):
    """A and W straight from the formulas, token by token, in Python floats (float64)."""
    rows, half = len(rewards), len(rewards) // 2
    loss = scale = count = 0.0
    for row in range(rows):
        partner = (row + half) % rows
        inside = [r for r, m in zip(rewards[partner], mask[partner], strict=True) if m]
        mean = sum(inside) / len(inside)
        sign = 1 if row < half else -1
        for t in range(len(mask[row]) - 1):
            if not (mask[row][t] and mask[row][t + 1]):
                continue
            a, b = (sign * (rewards[row][k] - mean) for k in (t, t + 1))
            p = probs[row][t + 1] if weighting == "probability" else 1.0
            loss += -0.5 * (sigmoid(b) * log_sigmoid(a) + sigmoid(a) * log_sigmoid(b)) * p
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


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("weighting", ["probability", "uniform"])
@pytest.mark.parametrize("spread", [0.1, 2.0, 50.0])
def test_terms_equal_the_double_loop(seed, weighting, spread):
    rewards, mask, probs = batch(seed, spread=spread)
    want_loss, want_scale = naive_terms(rewards.tolist(), mask.tolist(), probs.tolist(), weighting)
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        loss, scale = consistency_terms(rewards.to(dtype), mask, probs, weighting=weighting)
        assert loss.item() == pytest.approx(want_loss, rel=tolerance)
        assert scale.item() == pytest.approx(want_scale, rel=tolerance)


@settings(max_examples=150, deadline=None)
@given(
    spans=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), min_size=2, max_size=6).filter(
        lambda x: len(x) % 2 == 0
    ),
    shift=st.integers(0, 9),
    seed=st.integers(0, 2**16),
)
def test_any_layout_of_prompts_and_padding_gives_the_double_loop(spans, shift, seed):
    """Responses of any length, from a single token on, behind prompts of any length, padded to any width."""
    torch.manual_seed(seed)
    length = max(start + size for start, size in spans) + shift
    mask = torch.zeros(len(spans), length, dtype=torch.bool)
    for row, (start, size) in enumerate(spans):
        mask[row, start : start + size] = True
    rewards, probs = 5 * torch.randn(mask.shape, dtype=torch.float64), torch.rand(mask.shape, dtype=torch.float64)
    loss, scale = consistency_terms(rewards, mask, probs)
    want_loss, want_scale = naive_terms(rewards.tolist(), mask.tolist(), probs.tolist())
    assert loss.item() == pytest.approx(want_loss, rel=1e-10, abs=1e-14)
    assert scale.item() == pytest.approx(want_scale, rel=1e-10, abs=1e-14)


def test_gradient_is_the_formula_s():
    """d A / d R from the formula: u is constant, log u is not, the centring mean is constant."""
    rewards, mask, probs = batch(3, rows=4)
    rewards.requires_grad_(True)
    consistency_terms(rewards, mask, probs)[0].backward()
    values, half, count = rewards.detach().double(), 2, 0
    means = [values[r][mask[r]].mean().item() for r in range(4)]
    want = torch.zeros_like(values)
    for row in range(4):
        sign, mean = (1, means[row + half]) if row < half else (-1, means[row - half])
        for t in range(mask.shape[1] - 1):
            if mask[row, t] and mask[row, t + 1]:
                count += 1
                for here, other in ((t, t + 1), (t + 1, t)):
                    u_other = sigmoid(sign * (values[row, other].item() - mean))
                    slope = 1 - sigmoid(sign * (values[row, here].item() - mean))  # d log sigmoid(x) / dx
                    want[row, here] -= 0.5 * u_other * slope * sign * probs[row, t + 1].item()
    torch.testing.assert_close(rewards.grad.double(), want / count, rtol=1e-5, atol=1e-8)
    assert (rewards.grad[~mask] == 0).all()


def test_gradcheck():
    """The gradient in float64: exact for Bradley-Terry, and for A once its stop-gradients are held fixed."""
    rewards, mask, probs = batch(5, rows=4, length=7)
    rewards = rewards.double().requires_grad_(True)
    assert gradcheck(lambda x: bradley_terry_loss(x[:2, 0], x[2:, 0], label_smoothing=0.1), (rewards,))

    means = torch.stack([row[m].mean() for row, m in zip(rewards.detach(), mask, strict=True)]).roll(2)
    sign = torch.tensor([1.0, 1, -1, -1]).double()
    frozen_u = torch.sigmoid(sign[:, None] * (rewards.detach() - means[:, None]))
    adjacent = mask[:, 1:] & mask[:, :-1]

    def surrogate(x):
        log_u = torch.nn.functional.logsigmoid(sign[:, None] * (x - means[:, None]))
        ell = -0.5 * (frozen_u[:, 1:] * log_u[:, :-1] + frozen_u[:, :-1] * log_u[:, 1:])
        return (ell * probs[:, 1:])[adjacent].sum() / adjacent.sum()

    assert gradcheck(surrogate, (rewards,))
    want = torch.autograd.grad(surrogate(rewards), rewards)[0]
    got = torch.autograd.grad(consistency_terms(rewards, mask, probs)[0], rewards)[0]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_padding_prompt_and_their_contents_change_nothing():
    rewards, mask, probs = batch(7)
    want = consistency_terms(rewards, mask, probs)
    for junk in (0.0, -2.0, 1e30, float("nan"), float("inf")):
        left, right = torch.full((6, 3), junk), torch.full((6, 64), junk)
        wide = torch.cat([left, rewards.masked_fill(~mask, junk), right], 1)
        wide_mask = torch.cat([torch.zeros(6, 3).bool(), mask, torch.zeros(6, 64).bool()], 1)
        wide_probs = torch.cat([left, probs.masked_fill(~mask, junk), right], 1)
        got = consistency_terms(wide, wide_mask, wide_probs)
        assert got[0].item() == pytest.approx(want[0].item(), rel=1e-6)
        assert got[1].item() == pytest.approx(want[1].item(), rel=1e-6)


def test_nan_outside_the_mask_gives_no_nan_gradient():
    rewards, mask, probs = batch(7)
    rewards = rewards.masked_fill(~mask, float("nan")).requires_grad_(True)
    consistency_terms(rewards, mask, probs)[0].backward()
    assert torch.isfinite(rewards.grad).all()


def test_order_of_pairs_changes_nothing():
    rewards, mask, probs = batch(11)
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    a = consistency_terms(rewards, mask, probs)
    b = consistency_terms(rewards[order], mask[order], probs[order])
    assert a[0].item() == pytest.approx(b[0].item(), rel=1e-6)
    assert a[1].item() == pytest.approx(b[1].item(), rel=1e-6)


def test_a_constant_added_to_both_responses_changes_nothing():
    rewards, mask, probs = batch(13)
    a, b = consistency_terms(rewards, mask, probs), consistency_terms(rewards + 7.0, mask, probs)
    assert a[0].item() == pytest.approx(b[0].item(), rel=1e-5)
    chosen, rejected = rewards[:3, 0], rewards[3:, 0]
    assert bradley_terry_loss(chosen + 7, rejected + 7).item() == pytest.approx(
        bradley_terry_loss(chosen, rejected).item(), rel=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [50.0, 500.0])
def test_extreme_rewards_stay_finite_and_right(dtype, size):
    rewards = torch.tensor([[size, -size, size], [-size, size, size]], dtype=dtype).requires_grad_(True)
    mask, probs = torch.ones(2, 3, dtype=torch.bool), torch.full((2, 3), 0.5)
    loss, scale = consistency_terms(rewards, mask, probs)
    want = naive_terms(rewards.tolist(), mask.tolist(), probs.tolist())
    assert loss.item() == pytest.approx(want[0], rel=1e-5) and scale.item() == pytest.approx(want[1], rel=1e-5)
    (loss + bradley_terry_loss(rewards[:1, 2], rewards[1:, 2])).backward()
    assert torch.isfinite(rewards.grad).all() and rewards.grad.dtype == dtype


def test_a_probability_of_zero_cuts_the_tie_and_a_factor_scales_both_terms():
    rewards, mask, probs = batch(17)
    assert consistency_terms(rewards, mask, torch.zeros_like(probs))[0].item() == 0.0
    a, b = consistency_terms(rewards, mask, probs), consistency_terms(rewards, mask, 0.25 * probs)
    assert b[0].item() / b[1].item() == pytest.approx(a[0].item() / a[1].item(), rel=1e-5)


def test_single_token_responses_give_zero_with_a_gradient_path():
    rewards = torch.randn(2, 4, requires_grad=True)
    mask = torch.tensor([[False, True, False, False]] * 2)
    loss, scale = consistency_terms(rewards, mask, torch.rand(2, 4))
    loss.backward()
    assert loss.item() == 0.0 and scale.item() == 0.0 and (rewards.grad == 0).all()


def test_bradley_terry_formulas():
    chosen, rejected, margin = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0]), torch.tensor([0.3, -1.0])
    differences = [0.5, -3.0]
    plain = -sum(log_sigmoid(d) for d in differences) / 2
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(plain, rel=1e-6)
    with_margin = -sum(log_sigmoid(d - m) for d, m in zip(differences, [0.3, -1.0], strict=True)) / 2
    assert bradley_terry_loss(chosen, rejected, margin=margin).item() == pytest.approx(with_margin, rel=1e-6)
    smooth = -sum(0.9 * log_sigmoid(d) + 0.1 * log_sigmoid(-d) for d in differences) / 2
    assert bradley_terry_loss(chosen, rejected, label_smoothing=0.1).item() == pytest.approx(smooth, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "l3"}, "mutual_bce"),
        ({"weighting": "propability"}, "probability"),
        ({"centering": "batch"}, "response"),
    ],
)
def test_unknown_options_name_the_known_ones(change, message):
    rewards, mask, probs = batch(1)
    with pytest.raises(ValueError, match=message):
        consistency_terms(rewards, mask, probs, **change)


def test_wrong_shapes_are_refused():
    rewards, mask, probs = batch(1)
    with pytest.raises(ValueError, match="2B"):
        consistency_terms(rewards[:3], mask[:3], probs[:3])
    with pytest.raises(ValueError, match="token_probs"):
        consistency_terms(rewards, mask, probs[:, 1:])
    with pytest.raises(ValueError, match="bool"):
        consistency_terms(rewards, mask.long(), probs)
    with pytest.raises(ValueError, match="share one shape"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="0.5"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2), label_smoothing=0.7)
