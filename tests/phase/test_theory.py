"""First-order theory: its force is the gradient of the loss, and it foretells where a table goes."""

import dataclasses

import numpy as np
import pytest
import torch

from icrm_lib.objectives import consistency_terms
from icrm_lib.phase import Batch, compare_shift, first_order_shift, fit_table
from icrm_lib.phase.theory import force_and_stiffness


def test_the_force_is_the_gradient(short, rng):
    responses, n_states = short
    table = rng.normal(size=n_states)
    rewards = torch.tensor(table, requires_grad=True)
    mask, probs = torch.tensor(responses.mask), torch.tensor(responses.probs)
    loss, _ = consistency_terms(rewards[torch.tensor(responses.states)], mask, probs)
    (gradient,) = torch.autograd.grad(loss * (mask[:, 1:] & mask[:, :-1]).sum(), rewards)
    np.testing.assert_allclose(force_and_stiffness(table, responses)[0], -2 * gradient.numpy(), atol=1e-10)


def test_probabilities_that_states_share_are_their_own_means(short, rng):
    responses, n_states = short
    table = rng.normal(size=n_states)
    constant = dataclasses.replace(responses, probs=np.where(responses.mask, 0.3, 0.0))
    for one, other in zip(
        force_and_stiffness(table, constant), force_and_stiffness(table, constant, of_states=True), strict=True
    ):
        inner = np.setdiff1d(responses.states[responses.mask], responses.states[:, 0])  # p of the first token has no u
        np.testing.assert_allclose(one[inner], other[inner], rtol=1e-9, atol=1e-9)


def test_a_table_goes_where_it_is_foretold(short):
    responses, n_states = short
    options = {"steps": 200, "batch_size": 400, "consistency_weight": 0.6}
    uniform, weighted = (fit_table(Batch(responses), n_states, w, **options) for w in ("uniform", "probability"))
    predicted, visits = first_order_shift(uniform, responses)
    found = compare_shift(predicted, weighted - uniform, visits)
    assert found["states"] > 10 and found["correlation"] > 0.6 and found["slope"] > 0.5
    assert np.isnan(predicted[responses.closing_states()]).all()


def test_comparison_weighs_states_by_their_visits():
    predicted = np.array([0.0, 1.0, 5.0, np.nan])
    found = compare_shift(predicted, np.array([0.0, 2.0, -7.0, 9.0]), np.array([10, 10, 1e-9, 10]))
    assert found["correlation"] == pytest.approx(1, abs=1e-6) and found["slope"] == pytest.approx(2, abs=1e-6)
    assert found["states"] == 3
