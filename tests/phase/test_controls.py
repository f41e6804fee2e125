"""Controls: their definitions on hand-made tokens, and that what needs no truth says the same as what does."""

import dataclasses

import numpy as np
import pytest

from icrm_lib.phase import draw_responses, known_controls, measurable_controls
from icrm_lib.phase.responses import Responses
from icrm_lib.testbed import Language, TokenTruth


def hand_made(probs, values, states):
    """One pair: the first row chosen, the second rejected, all of one length."""
    probs, values, states = np.array(probs), np.array(values), np.array(states)
    nothing = np.zeros(probs.shape[1])
    truth = [TokenTruth(v, nothing, nothing, np.log(p), nothing) for v, p in zip(values, probs, strict=True)]
    mask = np.ones(probs.shape, dtype=bool)
    return Responses(states, mask, probs, None, states, np.array([1.0, -1.0]), truth)


def test_definitions_on_tokens_written_out():
    responses = hand_made(
        probs=[[1, 0.2, 0.8, 0.4], [1, 0.1, 0.4, 0.4]],
        values=[[0.5, 0.9, 0.9, 1.0], [0.5, 0.3, 0.3, 0.0]],
        states=[[0, 1, 2, 3], [0, 4, 2, 5]],
    )
    found = known_controls(responses)
    moving, still = [0.2, 0.4, 0.1, 0.4], [0.8, 0.4]
    mean = np.mean(moving + still)
    assert found["moving_tokens"] == pytest.approx(4 / 6)
    assert found["weight_at_changes"] == pytest.approx(np.mean(moving) / np.mean(still))
    assert found["neutral_surprise"] == pytest.approx(np.log(still).sum() / np.log(moving + still).sum())
    # States 0 and 2 are visited by both: p_{t+1} of 0.2 and 0.1, of 0.4 and 0.4; Cov = sum of deviations / (2 - 1).
    assert found["next_and_label"] == pytest.approx((2 * 0.05 * 0.5 * 2 + 0) / 6 / mean)
    assert found["here_and_label"] == pytest.approx(2 * 0.2 * 0.5 * 2 / 6 / mean)  # state 2: 0.8 and 0.4
    assert found["probability_and_gold"] == pytest.approx(1)


def test_coupling_shows_in_the_covariance_with_and_without_the_truth():
    known, measurable = {}, {}
    for kappa in (-0.6, 0.6):
        language = Language(coupling=kappa, verbs_per_class=5, idiosyncratic_words=0, clauses=(1, 3), threshold=1)
        responses, _ = draw_responses(language, 500, np.random.default_rng(0), expectations=True)
        known[kappa], measurable[kappa] = known_controls(responses), measurable_controls(responses)
    for controls in (known, measurable):
        assert controls[0.6]["next_and_label"] - controls[-0.6]["next_and_label"] > 1e-3
    # p of the token that led to a state is decided by what led there, and knows nothing of the label beyond it.
    assert abs(known[0.6]["here_and_label"] - known[-0.6]["here_and_label"]) < 5e-4


def test_measurable_controls_read_no_truth(short):
    responses, _ = short
    blind = dataclasses.replace(responses, truth=None, gold=None, states=None)
    assert measurable_controls(blind) == measurable_controls(responses)
    with pytest.raises(ValueError, match="expectations=True"):
        measurable_controls(dataclasses.replace(responses, expected=None))
