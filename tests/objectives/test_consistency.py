"""The consistency term against a naive float64 double loop, its gradient, and everything it must not depend on."""

import math

import pytest
import torch
from formulas import batch, naive_mean, naive_return, naive_terms, ragged, seeded, sigmoid
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from icrm_lib.objectives import CENTERINGS, FORMS, WEIGHTINGS, consistency_terms, pointwise_consistency_terms

# "td_lambda" looks at all that follows, so there is nothing to draw. "expected" has a file of its own.
FORMS_AND_WEIGHTINGS = [
    (f, w) for f in FORMS for w in WEIGHTINGS if f != "expected" and (f, w) != ("td_lambda", "random_pairs")
]


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
@pytest.mark.parametrize(("form", "weighting"), FORMS_AND_WEIGHTINGS)
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
    returns = [naive_return(frozen[row].tolist(), mask[row].tolist(), t, 0.9)[0] for row, t, _ in pairs]
    returns = torch.tensor(returns, dtype=torch.float64)

    def function(x):
        a, b = logits_of(x)[rows, here], logits_of(x)[rows, other]
        log_a, log_b = torch.nn.functional.logsigmoid(a), torch.nn.functional.logsigmoid(b)
        ell = {
            "mutual_bce": -0.5 * (frozen_b * log_a + frozen_a * log_b),
            "plain_log": -0.5 * (log_a + log_b),
            "l1": (torch.sigmoid(a) - torch.sigmoid(b)).abs(),
            "l2": (torch.sigmoid(a) - torch.sigmoid(b)) ** 2,
            "martingale": -(frozen_b * log_a + (1 - frozen_b) * (log_a - a)),  # log(1 - u) = log u - logit
            "td_lambda": -(returns * log_a + (1 - returns) * (log_a - a)),
            "dense": -log_a,
        }[form]
        return (ell * p).sum() / len(pairs)

    return function


@pytest.mark.parametrize(("form", "weighting"), FORMS_AND_WEIGHTINGS)
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


@pytest.mark.parametrize("weighting", ["probability", "uniform", "inverted"])
def test_td_lambda_lies_between_the_martingale_and_the_dense_form(weighting):
    rewards, mask, probs = ragged(29)
    terms = {"weighting": weighting}
    for td_lambda, form in ((0.0, "martingale"), (1.0, "dense")):
        found = []
        for options in ({"form": "td_lambda", "td_lambda": td_lambda}, {"form": form}):
            x = rewards.clone().requires_grad_(True)
            loss, scale = consistency_terms(x, mask, probs, **terms, **options)
            found.append((loss.item(), scale.item(), torch.autograd.grad(loss, x)[0]))
        (loss, scale, gradient), want = found
        assert loss == pytest.approx(want[0], rel=1e-14) and scale == want[1]
        torch.testing.assert_close(gradient, want[2], rtol=1e-12, atol=1e-16)
    data = (rewards, mask, probs)
    for td_lambda in (0.3, 0.75):
        got = consistency_terms(*data, form="td_lambda", td_lambda=td_lambda, **terms)
        want = naive_terms(*(x.tolist() for x in data), form="td_lambda", td_lambda=td_lambda, **terms)
        assert torch.stack(got).tolist() == pytest.approx(want, rel=1e-12)


def test_the_dense_form_is_bradley_terry_at_every_token_but_the_last():
    rewards = torch.tensor([[0.3, 1.2, -0.4, 9.0], [0.5, -1.0, 0.2, 9.0]]).double()
    mask = torch.tensor([[True, True, True, False]] * 2)
    loss, _ = consistency_terms(rewards, mask, mask.double(), form="dense", weighting="uniform")
    means = rewards[:, :3].mean(1)
    chosen = [-math.log(sigmoid(rewards[0, t] - means[1])) for t in (0, 1)]
    rejected = [-math.log(1 - sigmoid(rewards[1, t] - means[0])) for t in (0, 1)]
    assert loss.item() == pytest.approx(sum(chosen + rejected) / 4, rel=1e-12)


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


def test_random_pairs_follow_the_generator():
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


@pytest.mark.parametrize(("form", "weighting"), FORMS_AND_WEIGHTINGS)
def test_no_option_reads_outside_the_mask(form, weighting):
    """Nor how much stands there. Except centring on all positions, which is there to show that slip."""
    rewards, mask, probs = ragged(41)
    options = {"form": form, "weighting": weighting}
    terms = [
        lambda *x, **rest: consistency_terms(*x, **rest),
        lambda *x, **rest: consistency_terms(*x, centering="none", **rest),
        lambda *x, **rest: pointwise_consistency_terms(*x, torch.arange(8) % 2, **rest),
    ]
    for term in terms:
        want = torch.stack(term(rewards, mask, probs, generator=seeded(5), **options)).tolist()
        for junk in (0.0, -2.0, 1e30, math.nan, math.inf, -math.inf):
            dirty = [x.masked_fill(~mask, junk) for x in (rewards, probs)]
            dirty[0].requires_grad_(True)
            got = term(dirty[0], mask, dirty[1], generator=seeded(5), **options)
            assert torch.stack(got).tolist() == want
            got[0].backward()
            assert torch.isfinite(dirty[0].grad).all() and (dirty[0].grad[~mask] == 0).all()
            wide = [torch.nn.functional.pad(x, (3, 64), value=junk) for x in dirty]
            got = term(wide[0], torch.nn.functional.pad(mask, (3, 64)), wide[1], generator=seeded(5), **options)
            assert torch.stack(got).tolist() == pytest.approx(want, rel=1e-12)


def test_centring_on_all_positions_depends_on_padding_and_its_contents():
    rewards, mask, probs = ragged(43)
    want = consistency_terms(rewards, mask, probs, centering="positions")[0].item()
    wide = [torch.nn.functional.pad(x, (0, 20)) for x in (rewards, mask, probs)]
    assert abs(consistency_terms(*wide, centering="positions")[0].item() / want - 1) > 1e-3
    other = rewards.masked_fill(~mask, 3.0)
    assert abs(consistency_terms(other, mask, probs, centering="positions")[0].item() / want - 1) > 1e-3
    broken = rewards.masked_fill(~mask, math.nan)
    assert math.isnan(consistency_terms(broken, mask, probs, centering="positions")[0].item())


def test_the_order_of_pairs_and_a_constant_on_all_rewards_change_nothing():
    rewards, mask, probs = batch(11)
    order = torch.tensor([2, 0, 1, 5, 3, 4])
    want = torch.stack(consistency_terms(rewards, mask, probs)).tolist()
    moved = consistency_terms(rewards[order], mask[order], probs[order])
    assert torch.stack(moved).tolist() == pytest.approx(want, rel=1e-6)
    assert torch.stack(consistency_terms(rewards + 7.0, mask, probs)).tolist() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "weighting"), FORMS_AND_WEIGHTINGS)
@pytest.mark.parametrize("size", [50.0, 150.0, 500.0])
def test_every_option_stays_finite_and_right_at_extreme_rewards(dtype, form, weighting, size):
    signs = torch.tensor([[1, -1, -1, 1, 1, 0], [-1, 1, 1, 1, -1, -1]])
    mask, probs = torch.ones(2, 6, dtype=torch.bool), torch.full((2, 6), 0.25)
    partners = partners_of(mask, 7) if weighting == "random_pairs" else None
    options = {"form": form, "weighting": weighting}
    for centering in (*CENTERINGS, None):
        rewards = (size * signs).to(dtype).requires_grad_(True)
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"td_lambda": 1.5}, r"td_lambda must be in \[0, 1\], got 1.5"),
        ({"form": "td_lambda", "weighting": "random_pairs"}, "choose another weighting"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, m, p: (r[:3], m[:3], p[:3]), "2B"),
        (lambda r, m, p: (r, m, p[:, 1:]), "token_probs"),
        (lambda r, m, p: (r, m.long(), p), "response_mask must be bool"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        consistency_terms(*change(*batch(1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r, m, p, z: (r[0], m[0], p[0], z), r"rewards must have shape \(N, T\)"),
        (lambda r, m, p, z: (r, m, p, z[:3]), r"labels .* \(6,\); got \(3,\)"),
        (lambda r, m, p, z: (r, m.long(), p, z), "response_mask must be bool"),
        *((lambda r, m, p, z, x=x: (r, m, p, x * z), f"labels must be 0 .*got {x}") for x in (-1.0, 0.5, math.nan)),
    ],
)
def test_wrong_labels_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        pointwise_consistency_terms(*change(*batch(1), torch.ones(6)))
