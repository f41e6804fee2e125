"""Responses as arrays: the tokens that the template writes, exact probabilities, and states that decide values."""

import dataclasses

import numpy as np
import pytest
from languages import full_ids, prompt_ids

from icrm_lib.phase import draw_responses
from icrm_lib.testbed import Language

SHARED = Language(clauses=(1, 3), threshold=1, subword=True)  # verbs and pieces that several qualities share


def test_arrays_are_those_of_the_language_one_response_at_a_time():
    language = SHARED
    responses, n_states = draw_responses(language, 20, np.random.default_rng(3), expectations=True)
    pairs = language.preference_pairs(20, np.random.default_rng(3))
    rows = [(pair["prompt"], pair[side], pair[f"{side}_score"]) for side in ("chosen", "rejected") for pair in pairs]
    assert responses.gold.tolist() == [score for _, _, score in rows]
    for row, (prompt, text, _) in enumerate(rows):
        ids, start = full_ids(language, prompt, text), len(prompt_ids(language, prompt))
        mask = responses.mask[row]
        assert responses.tokens[row][mask].tolist() == ids[start:] and not mask[len(ids) - start :].any()
        np.testing.assert_allclose(responses.probs[row][mask], language.token_probs(ids)[start:], rtol=1e-12)
        expected = [np.square(language.next_token_probs(ids[:stop])).sum() for stop in range(start, len(ids))]
        np.testing.assert_allclose(responses.expected[row][mask], expected, rtol=1e-12)
        assert not responses.probs[row][~mask].any() and not responses.states[row][~mask].any()
    assert responses.states.max() == n_states - 1


@pytest.mark.parametrize("language", [SHARED, Language(verbs_per_class=5)], ids=["pieces", "words"])
def test_equal_states_have_equal_values_and_fewer_than_there_are_prefixes(language):
    responses, n_states = draw_responses(language, 150, np.random.default_rng(0))
    states, values = responses.states[responses.mask], np.concatenate([known.values for known in responses.truth])
    low, high = np.full(n_states, 2.0), np.full(n_states, -1.0)
    np.minimum.at(low, states, values)
    np.maximum.at(high, states, values)
    assert (high - low).max() < 1e-5  # beliefs are rounded
    assert np.unique(values).size < n_states < 0.4 * len(values)


def test_some_pairs_of_all_are_both_sides_of_them(short):
    responses, _ = short
    part = responses.of_pairs(3, 5)
    for mine, all_of in ((part.states, responses.states), (part.gold, responses.gold), (part.probs, responses.probs)):
        np.testing.assert_array_equal(mine, all_of[[3, 4, 403, 404]])
    assert part.truth[2] is responses.truth[403]
    assert (responses.closing_states() == [row[mask][-1] for row, mask in zip(*_both(responses), strict=True)]).all()


def _both(responses):
    return responses.states, responses.mask


def test_another_language_may_be_the_generator():
    writer = Language(verbs_per_class=5, idiosyncratic_words=0)
    generator = dataclasses.replace(writer, coupling=0.5, seed=1)
    own, other = (draw_responses(writer, 20, np.random.default_rng(1), generator=g)[0] for g in (None, generator))
    assert (own.tokens == other.tokens).all() and (own.states == other.states).all()
    assert (own.probs != other.probs).any() and other.probs[other.mask].min() > 0
    narrow = dataclasses.replace(writer, verbs_per_class=1)
    with pytest.raises(ValueError, match="probability zero"):
        draw_responses(writer, 20, np.random.default_rng(1), generator=narrow)
