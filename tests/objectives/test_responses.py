"""Losses of whole responses against their formulas in Python floats, their gradients, and what they refuse."""

import math

import pytest
import torch
from formulas import log_sigmoid, ragged, seeded
from torch.autograd import gradcheck

from icrm_lib.objectives import (
    bradley_terry_loss,
    grm_text_loss,
    outcome_loss,
    positive_reward_penalty,
    process_loss,
)


@pytest.mark.parametrize("margin", [None, [0.3, -1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bradley_terry_is_its_formula_and_reads_differences_only(margin, smoothing):
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    options = {"label_smoothing": smoothing, "margin": None if margin is None else torch.tensor(margin)}
    differences = [d - m for d, m in zip([0.5, -3.0], margin or [0.0, 0.0], strict=True)]
    want = -sum((1 - smoothing) * log_sigmoid(d) + smoothing * log_sigmoid(-d) for d in differences) / 2
    for constant in (0.0, 7.0):
        got = bradley_terry_loss(chosen + constant, rejected + constant, **options)
        assert got.item() == pytest.approx(want, rel=1e-6)
    rows = (chosen.double().requires_grad_(True), rejected.double().requires_grad_(True))
    assert gradcheck(lambda a, b: bradley_terry_loss(a, b, **options), rows)


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


@pytest.mark.parametrize("junk", [7.0, 1e30, math.nan, math.inf])
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
@pytest.mark.parametrize("size", [50.0, 150.0, -150.0, 500.0])
def test_losses_stay_finite_and_right_at_extreme_rewards(dtype, size):
    rewards = (size * torch.tensor([1.0, -1.0, 1.0])).to(dtype).requires_grad_(True)
    logits = rewards.tolist()
    losses = [
        (bradley_terry_loss(rewards, -rewards), [2 * x for x in logits]),
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


R, MASK, TARGETS = torch.zeros(6), torch.ones(6, 5).bool(), torch.rand(6, 5, generator=seeded(1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bradley_terry_loss(R, R[:3]), "share one shape"),
        (lambda: bradley_terry_loss(R, R, label_smoothing=0.7), "0.5"),
        (lambda: outcome_loss(R, torch.ones(6, 1)), r"one shape \(N,\)"),
        (lambda: outcome_loss(R, torch.ones(5)), r"one shape \(N,\)"),
        *((lambda x=x: outcome_loss(R, R + x), f"labels must be 0 .*got {x}") for x in (-1.0, 0.5, math.nan)),
        (lambda: process_loss(TARGETS, TARGETS, MASK.float()), "labelled must be bool"),
        (lambda: process_loss(TARGETS, TARGETS[:, 1:], MASK), "targets must have the shape"),
        (lambda: process_loss(R, R, MASK[0]), r"\(N, T\)"),
        *(
            (lambda x=x: process_loss(TARGETS, 0 * TARGETS + x, MASK), rf"\[0, 1\] where labelled, got {x}")
            for x in (-0.5, 1.5, math.nan)
        ),
        (lambda: grm_text_loss(torch.zeros(2, 1), None, form="sft"), "one shape"),
        (lambda: positive_reward_penalty(torch.zeros(2, 1)), r"\(B,\)"),
    ],
)
def test_wrong_shapes_labels_and_targets_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
