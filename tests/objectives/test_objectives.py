"""The objective against a naive float64 double loop, its gradient, and everything it must not depend on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from icrm_lib.objectives import (
    CENTERINGS,
    FORMS,
    WEIGHTINGS,
    bradley_terry_loss,
    consistency_terms,
    grm_text_loss,
    outcome_loss,
    pointwise_consistency_terms,
    positive_reward_penalty,
    process_loss,
)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x >= 0 else x - math.log1p(math.exp(x))


def naive_ell(form, a, b):
    """ell of a pair with logits a (here) and b (the other), in Python floats."""
    if form == "mutual_bce":
        return -0.5 * (sigmoid(b) * log_sigmoid(a) + sigmoid(a) * log_sigmoid(b))
    if form == "plain_log":
        return -0.5 * (log_sigmoid(a) + log_sigmoid(b))
    if form == "martingale":
        return -(sigmoid(b) * log_sigmoid(a) + sigmoid(-b) * log_sigmoid(-a))
    return abs(sigmoid(a) - sigmoid(b)) ** {"l1": 1, "l2": 2}[form]


def naive_mean(row, inside, centering):
    """What a row's partner is centred on."""
    if centering == "none":
        return 0.0
    values = [r for r, m in zip(row, inside, strict=True) if m or centering == "positions"]
    return sum(values) / max(len(values), 1)


def naive_terms(
    rewards, mask, probs, weighting="probability", form="mutual_bce", centering="response", labels=None, partners=None
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
        for t in range(len(mask[row]) - 1):
            other = t + 1 if partners is None else partners[row][t]
            if not (mask[row][t] and mask[row][t + 1]) or other is None:
                continue
            a, b = (sign * (rewards[row][k] - mean) for k in (t, other))
            p = probs[row][t + 1]
            p = {"uniform": 1.0, "inverted": 1.0 - p}.get(weighting, p)
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


def partners_of(mask, seed):
    """s for every t, None where t has no pair, read off the gradient: weight at one t at a time, the draws the same."""
    found = [[None] * mask.shape[1] for _ in mask]
    for t in range(mask.shape[1] - 1):
        rewards, probs = torch.zeros(mask.shape, requires_grad=True), torch.zeros(mask.shape)
        probs[:, t + 1] = 1.0
        options = {"form": "plain_log", "weighting": "random_pairs", "generator": seeded(seed)}
        consistency_terms(rewards, mask, probs, centering="none", **options)[0].backward()
        for row, gradient in enumerate(rewards.grad):
            touched = gradient.nonzero()[:, 0].tolist()
            if touched:
                touched.remove(t)
                (found[row][t],) = touched
    return found


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


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_option_equals_the_double_loop(seed, form, weighting):
    rewards, mask, probs = ragged(seed)
    labels = ((torch.arange(8) + seed) % 3 == 0).long()
    partners = partners_of(mask, seed) if weighting == "random_pairs" else None
    data, want = (rewards, mask, probs), {"form": form, "weighting": weighting, "partners": partners}
    for centering in CENTERINGS:
        got = consistency_terms(*data, form=form, weighting=weighting, centering=centering, generator=seeded(seed))
        expected = naive_terms(*(x.tolist() for x in data), centering=centering, **want)
        assert torch.stack(got).tolist() == pytest.approx(expected, rel=1e-12)
    for typed in (labels, labels.bool(), labels.float()):
        got = pointwise_consistency_terms(*data, typed, form=form, weighting=weighting, generator=seeded(seed))
        expected = naive_terms(*(x.tolist() for x in data), labels=labels.tolist(), **want)
        assert torch.stack(got).tolist() == pytest.approx(expected, rel=1e-12)
    odd = pointwise_consistency_terms(*(x[:1] for x in data), labels[:1], form=form)  # any number of rows
    expected = naive_terms(*(x[:1].tolist() for x in data), form=form, labels=labels[:1].tolist())
    assert torch.stack(odd).tolist() == pytest.approx(expected, rel=1e-12)


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


def surrogate_terms(x, logits_of, mask, probs, form, weighting, partners):
    """A as a function of x alone, every stop-gradient a constant computed beforehand."""
    pairs = [
        (row, t, t + 1 if partners is None else partners[row][t])
        for row, t in (mask[:, :-1] & mask[:, 1:]).nonzero().tolist()
        if partners is None or partners[row][t] is not None
    ]
    rows, here, other = torch.tensor(pairs).T
    p = probs[rows, here + 1]
    p = {"uniform": torch.ones_like(p), "inverted": 1 - p}.get(weighting, p)
    frozen = logits_of(x.detach())
    frozen_a, frozen_b = torch.sigmoid(frozen[rows, here]), torch.sigmoid(frozen[rows, other])

    def function(x):
        a, b = logits_of(x)[rows, here], logits_of(x)[rows, other]
        log_a, log_b = torch.nn.functional.logsigmoid(a), torch.nn.functional.logsigmoid(b)
        ell = {
            "mutual_bce": -0.5 * (frozen_b * log_a + frozen_a * log_b),
            "plain_log": -0.5 * (log_a + log_b),
            "l1": (torch.sigmoid(a) - torch.sigmoid(b)).abs(),
            "l2": (torch.sigmoid(a) - torch.sigmoid(b)) ** 2,
            "martingale": -(frozen_b * log_a + (1 - frozen_b) * (log_a - a)),  # log(1 - u) = log u - logit
        }[form]
        return (ell * p).sum() / len(pairs)

    return function


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_gradient_of_every_option_with_the_stop_gradients_held_fixed(form, weighting):
    rewards, mask, probs = ragged(23, length=9)
    rewards.requires_grad_(True)
    labels = torch.tensor([1, 0, 0, 1, 1, 0, 1, 0])
    partners = partners_of(mask, 23) if weighting == "random_pairs" else None
    options = {"form": form, "weighting": weighting}

    def compare(terms, logits_of):
        function = surrogate_terms(rewards, logits_of, mask, probs, form, weighting, partners)
        assert gradcheck(function, (rewards,))
        want = torch.autograd.grad(function(rewards), rewards)[0]
        loss, scale = terms(generator=seeded(23), **options)
        torch.testing.assert_close(torch.autograd.grad(loss, rewards)[0], want, rtol=1e-11, atol=1e-15)
        assert not scale.requires_grad

    signs = torch.tensor([1.0] * 4 + [-1.0] * 4).double()[:, None]
    for centering in CENTERINGS:
        data = zip(rewards.tolist(), mask.tolist(), strict=True)
        means = torch.tensor([naive_mean(*row, centering) for row in data], dtype=torch.float64).roll(4)[:, None]
        compare(
            lambda centering=centering, **rest: consistency_terms(rewards, mask, probs, centering=centering, **rest),
            lambda x, means=means: signs * (x - means),
        )
    compare(
        lambda **rest: pointwise_consistency_terms(rewards, mask, probs, labels, **rest),
        lambda x: (2.0 * labels - 1.0).double()[:, None] * x,
    )


def test_the_martingale_form_is_smallest_at_the_mean():
    """Three continuations in four end at reward a, one at b: the best u_t is 3/4 sigmoid(a) + 1/4 sigmoid(b)."""
    ends, mask, probs = torch.tensor([1.5, 1.5, 1.5, -2.0]).double(), torch.ones(4, 2).bool(), torch.ones(4, 2)

    def best(form):
        low, high = -20.0, 20.0  # the forms are convex in the prefix's logit: bisect the sign of the slope
        for _ in range(60):
            middle = torch.tensor((low + high) / 2, dtype=torch.float64, requires_grad=True)
            rewards = torch.stack([middle.expand(4), ends], 1)
            terms = pointwise_consistency_terms(rewards, mask, probs, torch.ones(4), form=form, weighting="uniform")
            terms[0].backward()
            low, high = (middle.item(), high) if middle.grad < 0 else (low, middle.item())
        return sigmoid(low)

    mean = 0.75 * sigmoid(1.5) + 0.25 * sigmoid(-2.0)
    assert best("martingale") == pytest.approx(mean, rel=1e-10)
    assert best("mutual_bce") > 0.99 and best("plain_log") > 0.99  # these only push up


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), density=st.floats(0.1, 1.0))
def test_random_pairs_stay_in_the_row_and_are_never_adjacent(seed, density):
    mask = torch.rand(6, 12, generator=seeded(seed)) < density
    for row, partners in enumerate(partners_of(mask, seed)):
        tokens = mask[row].nonzero()[:, 0].tolist()
        for t, other in enumerate(partners):
            paired = len(tokens) >= 4 and t in tokens and t + 1 in tokens
            assert (other is not None) == paired
            if paired:
                assert other in tokens and abs(other - t) > 1
                assert (tokens.index(other) - tokens.index(t)) % len(tokens) not in (0, 1, len(tokens) - 1)


def test_random_pairs_are_uniform_over_all_allowed_partners():
    rows, tokens = 400, [1, 2, 3, 5, 6, 7]
    mask = torch.zeros(rows, 9, dtype=torch.bool)
    mask[:, tokens] = True
    found = partners_of(mask, 31)
    for t in (1, 2, 5, 6):  # M_t = 1
        rank = tokens.index(t)
        allowed = {tokens[(rank + k) % 6] for k in (2, 3, 4)}
        drawn = [row[t] for row in found]
        assert set(drawn) == allowed
        assert all(abs(drawn.count(s) - rows / 3) < 5 * math.sqrt(rows * 2 / 9) for s in allowed)
    assert {row[t] for row in found for t in (0, 3, 4, 7, 8)} == {None}


def test_random_pairs_follow_the_generator_and_not_the_padding():
    rewards, mask, probs = ragged(37)
    random = {"weighting": "random_pairs"}
    want = consistency_terms(rewards, mask, probs, generator=seeded(1), **random)
    assert consistency_terms(rewards, mask, probs, generator=seeded(1), **random) == want
    assert consistency_terms(rewards, mask, probs, generator=seeded(2), **random) != want
    one = seeded(1)
    assert consistency_terms(rewards, mask, probs, generator=one, **random) == want
    assert consistency_terms(rewards, mask, probs, generator=one, **random) != want  # fresh draws every step
    torch.manual_seed(1)  # what the Trainer does
    assert consistency_terms(rewards, mask, probs, **random) == want
    wide = [torch.nn.functional.pad(x, (3, 50)) for x in (rewards, mask, probs)]
    got = consistency_terms(*wide, generator=seeded(1), **random)
    assert torch.stack(got).tolist() == pytest.approx(torch.stack(want).tolist(), rel=1e-12)


def test_rows_of_three_tokens_do_not_count_for_random_pairs():
    rewards, probs = torch.randn(2, 6).double(), torch.rand(2, 6).double()
    mask = torch.tensor([[True] * 6, [False, True, True, True, False, False]])
    labels = torch.tensor([1, 1])
    random = {"weighting": "random_pairs"}
    both = pointwise_consistency_terms(rewards, mask, probs, labels, generator=seeded(3), **random)
    alone = pointwise_consistency_terms(rewards[:1], mask[:1], probs[:1], labels[:1], generator=seeded(3), **random)
    assert torch.stack(both).tolist() == pytest.approx(torch.stack(alone).tolist(), rel=1e-12)
    rewards.requires_grad_(True)
    loss, scale = pointwise_consistency_terms(rewards[1:], mask[1:], probs[1:], labels[1:], **random)
    loss.backward()
    assert loss.item() == 0.0 and scale.item() == 0.0 and (rewards.grad == 0).all()


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_option_reads_outside_the_mask(form, weighting):
    """Except centring on all positions, which is there to show that slip."""
    rewards, mask, probs = ragged(41)
    options = {"form": form, "weighting": weighting}
    terms = [
        lambda *x, **rest: consistency_terms(*x, **rest),
        lambda *x, **rest: consistency_terms(*x, centering="none", **rest),
        lambda *x, **rest: pointwise_consistency_terms(*x, torch.arange(8) % 2, **rest),
    ]
    for term in terms:
        want = torch.stack(term(rewards, mask, probs, generator=seeded(5), **options)).tolist()
        for junk in (-2.0, 1e30, float("nan"), float("-inf")):
            dirty = rewards.masked_fill(~mask, junk).requires_grad_(True)
            got = term(dirty, mask, probs.masked_fill(~mask, junk), generator=seeded(5), **options)
            assert torch.stack(got).tolist() == want
            got[0].backward()
            assert torch.isfinite(dirty.grad).all() and (dirty.grad[~mask] == 0).all()


def test_centring_on_all_positions_depends_on_padding_and_its_contents():
    rewards, mask, probs = ragged(43)
    want = consistency_terms(rewards, mask, probs, centering="positions")[0].item()
    wide = [torch.nn.functional.pad(x, (0, 20)) for x in (rewards, mask, probs)]
    assert abs(consistency_terms(*wide, centering="positions")[0].item() / want - 1) > 1e-3
    other = rewards.masked_fill(~mask, 3.0)
    assert abs(consistency_terms(other, mask, probs, centering="positions")[0].item() / want - 1) > 1e-3
    broken = rewards.masked_fill(~mask, float("nan"))
    assert math.isnan(consistency_terms(broken, mask, probs, centering="positions")[0].item())


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_option_stays_finite_and_right_at_extreme_rewards(dtype, form, weighting):
    signs = torch.tensor([[1, -1, -1, 1, 1, 0], [-1, 1, 1, 1, -1, -1]])
    mask, probs = torch.ones(2, 6, dtype=torch.bool), torch.full((2, 6), 0.25)
    partners = partners_of(mask, 7) if weighting == "random_pairs" else None
    options = {"form": form, "weighting": weighting}
    for centering in (*CENTERINGS, None):
        rewards = (150.0 * signs).to(dtype).requires_grad_(True)
        data, naive = (rewards, mask, probs), {"form": form, "weighting": weighting, "partners": partners}
        options["generator"] = seeded(7)
        if centering is None:
            labels = [1, 0]
            loss, scale = pointwise_consistency_terms(*data, torch.tensor(labels), **options)
            want = naive_terms(*(x.tolist() for x in data), labels=labels, **naive)
        else:
            loss, scale = consistency_terms(*data, centering=centering, **options)
            want = naive_terms(*(x.tolist() for x in data), centering=centering, **naive)
        assert (loss.item(), scale.item()) == pytest.approx(want, rel=1e-5, abs=1e-30)
        loss.backward()
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


def test_outcome_loss_is_the_binary_cross_entropy():
    rewards = 3 * torch.randn(9, dtype=torch.float64, generator=seeded(51))
    labels = torch.arange(9) % 3 == 0
    want = -sum(log_sigmoid(r if z else -r) for r, z in zip(rewards.tolist(), labels.tolist(), strict=True)) / 9
    for typed in (labels, labels.long(), labels.float(), labels.double()):
        assert outcome_loss(rewards, typed).item() == pytest.approx(want, rel=1e-12)
    assert gradcheck(lambda x: outcome_loss(x, labels), (rewards.requires_grad_(True),))


def test_process_loss_is_the_mean_over_the_labelled_positions():
    rewards, labelled, targets = ragged(53)
    total = count = 0
    for row, t in labelled.nonzero().tolist():
        reward, target = rewards[row, t].item(), targets[row, t].item()
        total += -target * log_sigmoid(reward) - (1 - target) * log_sigmoid(-reward)
        count += 1
    assert process_loss(rewards, targets, labelled).item() == pytest.approx(total / count, rel=1e-12)
    assert gradcheck(lambda x: process_loss(x, targets, labelled), (rewards.requires_grad_(True),))
    hard = (targets > 0.5).long()
    assert process_loss(rewards, hard, labelled).item() == process_loss(rewards, hard.double(), labelled).item()


@pytest.mark.parametrize("junk", [7.0, 1e30, float("nan"), float("inf")])
def test_unlabelled_positions_do_not_matter(junk):
    rewards, labelled, targets = ragged(57)
    rewards.requires_grad_(True)
    dirty = rewards.detach().masked_fill(~labelled, junk).requires_grad_(True)
    want = process_loss(rewards, targets, labelled)
    got = process_loss(dirty, targets.masked_fill(~labelled, junk), labelled)
    got.backward()
    want.backward()
    assert got.item() == want.item() and torch.equal(dirty.grad, rewards.grad)
    assert (dirty.grad[~labelled] == 0).all() and (dirty.grad[labelled] != 0).all()
    dirty.grad = None
    nothing = process_loss(dirty, targets, torch.zeros_like(labelled))
    nothing.backward()
    assert nothing.item() == 0.0 and (dirty.grad == 0).all()


def test_grm_formulas():
    sums = -20 * torch.rand(4, 5, dtype=torch.float64, generator=seeded(61))
    won, lost, base_won, base_lost = sums.tolist()
    references = {"reference_chosen": sums[2], "reference_rejected": sums[3]}
    differences = [w - x for w, x in zip(won, lost, strict=True)]
    against = [d - (w - x) for d, w, x in zip(differences, base_won, base_lost, strict=True)]
    for form, base, logits in (("sft", {}, won), ("dpo_noref", {}, differences), ("dpo", references, against)):
        for beta in (0.1, 0.7):
            want = -sum(log_sigmoid(beta * x) for x in logits) / 5
            got = grm_text_loss(sums[0], sums[1], form=form, beta=beta, **base)
            assert got.item() == pytest.approx(want, rel=1e-12)
        chosen, rejected = (sums[k].clone().requires_grad_(True) for k in (0, 1))
        default = grm_text_loss(chosen, rejected, form=form, **base)
        assert default.item() == pytest.approx(-sum(log_sigmoid(0.1 * x) for x in logits) / 5, rel=1e-12)
        assert gradcheck(lambda a, b, f=form, g=base: grm_text_loss(a, b, form=f, **g), (chosen, rejected))
    assert grm_text_loss(sums[0], None, form="sft").item() == grm_text_loss(sums[0], sums[1], form="sft").item()


def test_the_reference_of_grm_gets_no_gradient():
    sums = [torch.full((2,), -float(k), requires_grad=True) for k in range(1, 5)]
    grm_text_loss(*sums[:2], form="dpo", reference_chosen=sums[2], reference_rejected=sums[3]).backward()
    assert sums[0].grad is not None and sums[2].grad is None and sums[3].grad is None


def test_positive_reward_penalty_is_on_the_mean():
    chosen = torch.tensor([2.0, -3.0, 0.5, 4.0], dtype=torch.float64, requires_grad=True)
    assert positive_reward_penalty(chosen).item() == pytest.approx(-log_sigmoid(3.5 / 4), rel=1e-12)
    assert gradcheck(positive_reward_penalty, (chosen,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_other_losses_stay_finite_and_right_at_extreme_rewards(dtype, sign):
    rewards = (sign * torch.tensor([150.0, -150.0, 150.0])).to(dtype).requires_grad_(True)
    logits = rewards.tolist()
    losses = [
        (outcome_loss(rewards, torch.tensor([0, 1, 1])), [-logits[0], logits[1], logits[2]]),
        (process_loss(rewards[None], torch.zeros(1, 3), torch.ones(1, 3).bool()), [-x for x in logits]),
        (grm_text_loss(rewards, None, form="sft", beta=1.0), logits),
        (grm_text_loss(rewards, -rewards, form="dpo_noref", beta=1.0), [2 * x for x in logits]),
        (positive_reward_penalty(rewards), [sum(logits) / 3] * 3),
    ]
    for loss, terms in losses:
        want = -sum(log_sigmoid(x) for x in terms) / 3
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(want, rel=1e-6, abs=1e-30)
    sum(loss for loss, _ in losses).backward()
    assert torch.isfinite(rewards.grad).all() and rewards.grad.dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "l3"}, "mutual_bce"),
        ({"weighting": "propability"}, "probability"),
        ({"centering": "batch"}, "response"),
        ({"form": "L1"}, "plain_log, l1, l2, martingale"),
        ({"weighting": "random"}, "uniform, inverted, random_pairs"),
        ({"centering": "all"}, "positions, none"),
    ],
)
def test_unknown_options_name_the_known_ones(change, message):
    rewards, mask, probs = batch(1)
    with pytest.raises(ValueError, match=message):
        consistency_terms(rewards, mask, probs, **change)
    if "centering" not in change:
        with pytest.raises(ValueError, match=message):
            pointwise_consistency_terms(rewards, mask, probs, torch.ones(6), **change)


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


def test_wrong_labels_and_targets_are_refused():
    rewards, mask, probs = batch(1)
    with pytest.raises(ValueError, match=r"rewards must have shape \(N, T\)"):
        pointwise_consistency_terms(rewards[0], mask[0], probs[0], torch.ones(6))
    with pytest.raises(ValueError, match=r"labels .* \(6,\); got \(3,\)"):
        pointwise_consistency_terms(rewards, mask, probs, torch.ones(3))
    with pytest.raises(ValueError, match="response_mask must be bool"):
        pointwise_consistency_terms(rewards, mask.long(), probs, torch.ones(6))
    for wrong in (-1.0, 0.5, float("nan")):
        labels = torch.tensor([1.0, 0.0, wrong, 1.0, 0.0, 0.0])
        for call in (
            lambda labels=labels: pointwise_consistency_terms(rewards, mask, probs, labels),
            lambda labels=labels: outcome_loss(rewards[:, 0], labels),
        ):
            with pytest.raises(ValueError, match=f"labels must be 0 .*got {wrong}"):
                call()
    for shape in ((6, 1), (5,)):
        with pytest.raises(ValueError, match=r"one shape \(N,\)"):
            outcome_loss(rewards[:, 0], torch.ones(shape))
    with pytest.raises(ValueError, match="labelled must be bool"):
        process_loss(rewards, probs, mask.float())
    with pytest.raises(ValueError, match="targets must have the shape"):
        process_loss(rewards, probs[:, 1:], mask)
    with pytest.raises(ValueError, match=r"\(N, T\)"):
        process_loss(rewards[0], probs[0], mask[0])
    for wrong in (-0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"\[0, 1\] where labelled, got {wrong}"):
            process_loss(rewards, probs.masked_fill(mask, wrong), mask)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "dpo-noref"}, "unknown form 'dpo-noref'; choose one of sft, dpo_noref, dpo"),
        ({"beta": 0.0}, "beta must be > 0, got 0.0"),
        ({"rejected": None}, "'dpo' compares both responses, but rejected is None"),
        ({"form": "dpo_noref", "rejected": None}, "'dpo_noref' compares both responses"),
        ({"reference_chosen": None}, "'dpo' needs reference_chosen"),
        ({"reference_rejected": None}, "'dpo' needs reference_rejected"),
        ({"form": "sft"}, "'sft' has no reference model, but reference_chosen is given"),
        ({"form": "dpo_noref", "reference_chosen": None}, "'dpo_noref' has no .* reference_rejected is given"),
        ({"rejected": torch.zeros(3)}, "one shape"),
        ({"reference_rejected": torch.zeros(2, 1)}, "one shape"),
    ],
)
def test_what_grm_refuses(change, message):
    names = ("chosen", "rejected", "reference_chosen", "reference_rejected")
    with pytest.raises(ValueError, match=message):
        grm_text_loss(**{"form": "dpo", **{name: torch.zeros(2) for name in names}, **change})
    with pytest.raises(ValueError, match="one shape"):
        grm_text_loss(torch.zeros(2, 1), None, form="sft")
    with pytest.raises(ValueError, match=r"\(B,\)"):
        positive_reward_penalty(torch.zeros(2, 1))
