"""Knobs that decide which tokens are probable: what they change, and that nothing else changes."""

import dataclasses
import itertools

import numpy as np
import pytest
from languages import PAPER_OPENER, PAPER_PROMPT, PLAIN, SUBWORD, draw, full_ids, gold, prompt_ids
from scipy import stats

from icrm_lib.testbed import Language
from icrm_lib.testbed.draws import TOPIC_SHARPNESS, stream
from icrm_lib.testbed.words import NAMES, PHRASE_QUALITY, PHRASES, PLACES

FEW = {"verbs_per_class": 5, "coupling": 0.6, "alternative_probability": 0.5, "linking_words": False}
# Of `Language(idiosyncratic_words=1, clauses=(2, 2))` before there were these knobs: the first response drawn to its
# first prompt with `numpy.random.default_rng(0)`, and its log-probability.
DRAWN = (
    "An effective way to stand by a friend who feels sad is to sort the pencils with David then count the boxes with "
    "Nadia."
)
LOGPROB = -21.965124577120275


def weights(kappa, used):
    """Written out: (3, used) weights of the first topic's verbs before they sum to 1; rows bad, neutral, good."""
    taste = stream(0, "verbs").normal(size=(8, 3, 40))[0, :, :used]
    return np.exp(TOPIC_SHARPNESS * taste) ** np.array([1 - kappa, 1, 1 + kappa])[:, None]


@pytest.mark.parametrize("subword", [False, True])
@pytest.mark.parametrize(("kappa", "used", "second"), [(0.6, 5, 0.5), (-0.4, 40, 0.2), (0.0, 1, 0.5)])
def test_every_response_of_one_clause_has_the_probability_written_out(subword, kappa, used, second):
    knobs = {"coupling": kappa, "verbs_per_class": used, "alternative_probability": second, "linking_words": False}
    language = Language(clauses=(1, 1), threshold=1, n_idiosyncratic=2, subword=subword, **knobs)
    verbs = weights(kappa, used) / weights(kappa, used).sum(axis=1, keepdims=True)
    total = top = 0.0
    for row, i in itertools.product(range(3), range(used)):
        for text, alternatives in zip(PHRASES[row][i].texts(), (0, 1, 1, 2), strict=True):
            ids = full_ids(language, PAPER_PROMPT, f"{PAPER_OPENER}{text} {NAMES[0]} {PLACES[0]}.")
            expected = verbs[row, i] / 3 * second**alternatives * (1 - second) ** (2 - alternatives)
            assert language.token_probs(ids).prod() == pytest.approx(expected, rel=1e-12)
            total, top = total + expected, top + expected * language.prefix_values(ids)[-1]
    assert total == pytest.approx(1, abs=1e-12)
    assert top == pytest.approx(language.prefix_value(prompt_ids(language, PAPER_PROMPT)), abs=1e-12)


def test_defaults_are_the_language_as_it_was():
    written = {"verbs_per_class": 40, "coupling": 0.0, "alternative_probability": 0.15, "linking_words": True}
    assert {name: value for name, value in Language().config().items() if name in written} == written
    language = Language(idiosyncratic_words=1, clauses=(2, 2))
    prompt = language.prompts[0]
    assert language.sample_responses(prompt, 1, np.random.default_rng(0)) == [DRAWN]
    logprobs = np.log(language.token_probs(full_ids(language, prompt, DRAWN)))
    assert logprobs.sum() == pytest.approx(LOGPROB, rel=1e-14)


@pytest.mark.parametrize("used", [1, 5, 40])
def test_the_first_verbs_of_a_class_are_used(used, rng):
    language = Language(verbs_per_class=used, idiosyncratic_words=0)
    words = " ".join(text for prompt in language.prompts[::12] for text in language.sample_responses(prompt, 200, rng))
    words = words.replace(",", "").replace(".", "").split()
    triples = zip(words, words[1:], words[2:], strict=False)
    found = {(PHRASE_QUALITY[triple], triple[0]) for triple in triples if triple in PHRASE_QUALITY}
    assert found == {(q, entry.verb) for q, row in zip((-1, 0, 1), PHRASES, strict=True) for entry in row[:used]}


def test_held_out_verbs_are_some_of_those_in_use(rng):
    without = Language(verbs_per_class=8, held_out_verbs=0.25)
    only = dataclasses.replace(without, only_held_out_verbs=True)
    used, unseen = (language._chances.verbs > 0 for language in (without, only))
    assert not (used & unseen).any() and (used | unseen)[..., :8].all() and not (used | unseen)[..., 8:].any()
    assert (unseen.sum(axis=2) == 2).all()
    with pytest.raises(ValueError, match="held_out_verbs 0.9: must be in 0..0.9 and leave some of the 2 verbs"):
        Language(verbs_per_class=2, held_out_verbs=0.9)
    with pytest.raises(ValueError, match="only_held_out_verbs True: .* only where verbs are held out"):
        Language(verbs_per_class=1, held_out_verbs=0.25, only_held_out_verbs=True)


def test_coupling_makes_good_verbs_likelier_than_bad_ones(rng):
    def verb_probability(kappa):
        verbs = Language(coupling=kappa)._chances.verbs
        return (verbs**2).sum(axis=2).mean(axis=0)  # expected probability of a clause's verb, given its quality

    flat, steep, opposite = verb_probability(0.0), verb_probability(0.6), verb_probability(-0.6)
    assert steep[2] > 1.5 * flat[2] and steep[0] < flat[0] / 1.5 and steep[1] == flat[1]
    assert opposite[2] < flat[2] / 1.5 and opposite[0] > 1.5 * flat[0]


def test_alternatives_become_as_likely_as_main_forms(rng):
    texts = Language(alternative_probability=0.5, idiosyncratic_words=0).sample_responses(PAPER_PROMPT, 2000, rng)
    phrases = [entry.texts() for row in PHRASES for entry in row]
    counts = np.array([sum(text.count(each[form]) for text in texts for each in phrases[::5]) for form in range(4)])
    assert counts.sum() > 1000 and stats.chisquare(counts).pvalue > 1e-4


def test_without_linking_words_a_place_follows_its_name(rng):
    bare = dataclasses.replace(PLAIN, linking_words=False)
    texts, as_before = (one.sample_responses(PAPER_PROMPT, 50, np.random.default_rng(1)) for one in (bare, PLAIN))
    body = [text.removeprefix(PAPER_OPENER) for text in as_before]
    assert texts == [PAPER_OPENER + text.replace(" with ", " ").replace(" in ", " ") for text in body]
    assert [gold(bare, text) for text in texts] == [gold(PLAIN, text) for text in as_before]


def test_a_language_with_the_same_support_is_another_generator(rng):
    """The writer's responses, asked of a language with other tastes in verbs: probabilities, and they sum to 1."""
    for writer in (Language(**FEW), dataclasses.replace(SUBWORD, coupling=-0.5)):
        generator = dataclasses.replace(writer, coupling=-writer.coupling, seed=writer.seed + 1)
        for prompt, ids, _ in draw(writer, rng, 5):
            own, other = writer.token_probs(ids), generator.token_probs(ids)
            assert (other > 0).all() and (own != other).any()
            for stop in range(len(prompt), len(ids), 5):
                probs = generator.next_token_probs(ids[:stop])
                assert probs.sum() == pytest.approx(1, abs=1e-12)
                assert probs[ids[stop]] == pytest.approx(other[stop], rel=1e-12)
