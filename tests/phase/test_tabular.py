"""The table is trained with the loss of the trainer, on the weights that its name says."""

import dataclasses

import numpy as np
import pytest
import torch

from icrm_lib.phase import WEIGHTINGS, Batch, fit_table
from icrm_lib.phase.tabular import table_loss
from icrm_lib.training import ICRMConfig
from icrm_lib.training.loss import Batch as NetworkBatch
from icrm_lib.training.loss import icrm_loss
from icrm_lib.training.scale import ConsistencyScale


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_loss_is_the_trainers(short, weighting, tmp_path):
    responses, n_states = short
    batch, rows = Batch(responses.of_pairs(0, 8)), torch.arange(16)
    table = torch.randn(n_states, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scales = [ConsistencyScale(), ConsistencyScale()]
    found = table_loss(table, batch, rows, weighting, scales[0], 0.6)
    args = ICRMConfig(
        str(tmp_path), weighting=weighting, consistency_weight=0.6, sft_weight=0.0, report_to="none", bf16=False
    )
    probs = batch.shuffled if weighting == "shuffled" else batch.probs
    network = NetworkBatch(table[batch.closing], table[batch.states], response_mask=batch.mask, token_probs=probs)
    expected, _ = icrm_loss(network, args, scales[1])
    assert found.item() == expected.item() and scales[0].value == scales[1].value
    gradients = [torch.autograd.grad(loss, table)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_shuffled_probabilities_stay_in_their_response(short):
    responses, _ = short
    batch, other = Batch(responses, seed=0), Batch(responses, seed=1)
    assert (batch.shuffled != batch.probs).any() and (batch.shuffled != other.shuffled).any()
    assert not batch.shuffled[~batch.mask].any()
    np.testing.assert_array_equal(np.sort(batch.shuffled, axis=1), np.sort(batch.probs, axis=1))


def test_without_consistency_closing_states_have_the_log_odds_of_the_labels(short):
    """One closing state against another: Bradley-Terry's maximum likelihood is the log of wins over losses."""
    responses, _ = short
    part = responses.of_pairs(0, 40)
    states = np.zeros_like(part.states)
    states[np.arange(80), part.lengths - 1] = np.r_[np.ones(30), np.full(10, 2), np.full(30, 2), np.ones(10)]
    table = fit_table(Batch(dataclasses.replace(part, states=states)), 3, "uniform", consistency_weight=0.0)
    assert table[1] - table[2] == pytest.approx(np.log(3), abs=1e-3) and table[0] == 0


def test_certain_tokens_have_no_weights(short):
    responses, n_states = short
    certain = dataclasses.replace(responses, probs=responses.mask.astype(float))
    weighted, shuffled, plain = (
        fit_table(Batch(one), n_states, weighting, steps=30, batch_size=400)
        for one, weighting in ((certain, "probability"), (certain, "shuffled"), (responses, "uniform"))
    )
    np.testing.assert_array_equal(weighted, plain)
    np.testing.assert_array_equal(shuffled, plain)
    assert np.abs(fit_table(Batch(responses), n_states, "probability", steps=30) - plain).max() > 0.1


def test_a_seed_twice_is_the_same_table(short):
    responses, n_states = short
    options = {"steps": 20, "batch_size": 100}
    tables = [fit_table(Batch(responses), n_states, "probability", seed=seed, **options) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (tables[0] != tables[2]).any()
