"""Probabilities and values of the generated language: every exact number against an independent way to get it."""

import dataclasses
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from languages import PAPER_OPENER, PAPER_PROMPT, PLAIN, SUBWORD, VARIED, draw, full_ids, gold, prompt_ids
from scipy import stats

from icrm_lib.testbed import Language, known_truth
from icrm_lib.testbed.words import OPENERS, PHRASE_QUALITY, PHRASES


def consistency_residuals(language, prefix):
    """|value - sum_v P(v) value(prefix v)|, the same of the expected score, and |sum_v P(v) - 1| at one prefix.

    The first is eq. (3) with n = m + 1.
    """
    probs = language.next_token_probs(prefix)
    tokens = np.flatnonzero(probs)
    walks = [language.walk(ids)[1] for ids in (prefix, *([*prefix, token] for token in tokens))]
    values, scores = np.array([(walk.values()[-1], walk.scores()[-1]) for walk in walks]).T
    expected = probs[tokens] @ values[1:], probs[tokens] @ scores[1:]
    return abs(values[0] - expected[0]), abs(scores[0] - expected[1]), abs(probs.sum() - 1)


@pytest.mark.parametrize("name", VARIED)
def test_value_is_the_expectation_over_the_next_token(name, rng):
    language = VARIED[name]
    prefixes = [
        ids[:stop]
        for prompt, ids, _ in draw(language, rng, 12, language.prompts[3])
        for stop in rng.choice(np.arange(len(prompt), len(ids)), size=min(8, len(ids) - len(prompt)), replace=False)
    ]
    assert len(prefixes) >= 80
    residuals = np.array([consistency_residuals(language, prefix) for prefix in prefixes])
    assert residuals.max() < 1e-12


@pytest.mark.parametrize("language", [PLAIN, SUBWORD], ids=["words", "pieces"])
def test_consistency_at_every_token_of_clauses_with_shared_verbs(language):
    text = PAPER_OPENER + "use kind words with Ken in Lima, and make empty threats with Ana in Rome"
    start = len(prompt_ids(language, PAPER_PROMPT))
    ids = full_ids(language, PAPER_PROMPT, text)[:-1]
    residuals = np.array([consistency_residuals(language, ids[:stop]) for stop in range(start, len(ids) + 1)])
    assert residuals.max() < 1e-12


@pytest.mark.parametrize("name", VARIED)
def test_the_three_queries_agree(name, rng):
    language = VARIED[name]
    for prompt, ids, text in draw(language, rng, 5):
        probs, values = language.token_probs(ids), language.prefix_values(ids)
        assert probs.shape == values.shape == (len(ids),) and probs.dtype == values.dtype == np.float64
        assert (probs > 0).all() and (probs <= 1 + 1e-12).all()
        assert (probs[: len(prompt)] == 1).all()
        assert (values[: len(prompt)] == language.prefix_value(prompt)).all()
        for stop in range(len(prompt), len(ids), 3):
            assert probs[stop] == pytest.approx(language.next_token_probs(ids[:stop])[ids[stop]], rel=1e-12)
            assert values[stop] == pytest.approx(language.prefix_value(ids[: stop + 1]), abs=1e-15)
        assert values[-1] == float(gold(language, text) >= language.threshold)
        assert language.expected_scores(ids)[-1] == gold(language, text)


def test_pieces_and_words_give_a_response_the_same_probability_and_values(rng):
    pieces = SUBWORD.tokenizer
    for _, ids, text in draw(PLAIN, rng, 50):
        split = full_ids(SUBWORD, PLAIN.prompts[0], text)
        assert len(split) > len(ids)
        assert np.log(SUBWORD.token_probs(split)).sum() == pytest.approx(np.log(PLAIN.token_probs(ids)).sum())
        # The last piece of each word (that is: no piece follows) has the value of the word.
        follows = [token.startswith("##") for token in pieces.convert_ids_to_tokens(split)[1:]] + [False]
        words = SUBWORD.prefix_values(split)[~np.array(follows)]
        np.testing.assert_allclose(words[-20:], PLAIN.prefix_values(ids)[-20:], atol=1e-12)


def test_a_piece_shared_by_good_and_bad_words_has_a_value_between():
    """'pro' begins protect (+1) and provoke (-1): the belief after it is a mixture, weighed by the verbs."""
    language = dataclasses.replace(SUBWORD, clauses=(1, 1), threshold=1, idiosyncratic_words=0)
    ids = full_ids(language, PAPER_PROMPT, PAPER_OPENER)[:-1]
    vocabulary = language.tokenizer.get_vocab()
    entries = {entry.verb: (row, i) for row, each in enumerate(PHRASES) for i, entry in enumerate(each)}
    sharing = {verb: where for verb, where in entries.items() if verb.startswith("pro")}
    assert set(sharing) == {"protect", "provoke"}
    weights = {verb: language._chances.verbs[0][where] for verb, where in sharing.items()}
    expected = weights["protect"] / sum(weights.values())
    assert language.prefix_value([*ids, vocabulary["pro"]]) == pytest.approx(expected, rel=1e-12)
    assert language.prefix_value([*ids, vocabulary["pro"], vocabulary["##tec"]]) == 1.0
    assert 0 < expected < 1


def test_empty_response_value_against_enumerated_quality_sequences():
    """Written out: half of the responses have one clause, half two; two clauses agree with chance 0.75."""
    pairs = itertools.product((-1, 0, 1), repeat=2)
    two = sum((0.75 if a == b else 0.125) / 3 for a, b in pairs if a + b >= 1)
    for n_words, subword in itertools.product((0, 1, 2), (False, True)):
        language = Language(clauses=(1, 2), threshold=1, idiosyncratic_words=n_words, subword=subword)
        value = language.prefix_value(prompt_ids(language, PAPER_PROMPT))
        assert value == pytest.approx(0.5 / 3 + 0.5 * two, abs=1e-14)


def test_walking_every_response_of_a_tiny_language():
    """All 480 one-clause responses, by next_token_probs alone, exhaust the probability and the value."""
    language = Language(clauses=(1, 1), threshold=1, idiosyncratic_words=0, subword=True)
    tokenizer, start = language.tokenizer, prompt_ids(language, PAPER_PROMPT)
    leaves, open_prefixes = {}, [(start, 1.0)]
    while open_prefixes:
        prefix, prob = open_prefixes.pop()
        probs = language.next_token_probs(prefix)
        for token in np.flatnonzero(probs):
            longer = ([*prefix, int(token)], prob * probs[token])
            if token == tokenizer.eos_token_id:
                leaves[tokenizer.decode(longer[0][len(start) : -1])] = longer[1]
            else:
                open_prefixes.append(longer)
    assert set(leaves) == {PAPER_OPENER + " ".join(phrase) + "." for phrase in PHRASE_QUALITY}
    assert sum(leaves.values()) == pytest.approx(1, abs=1e-12)
    top = sum(prob for text, prob in leaves.items() if gold(language, text) >= 1)
    assert top == pytest.approx(language.prefix_value(start), abs=1e-12)


def test_values_are_the_frequencies_of_the_top_score(rng):
    prompt = PLAIN.prompts[7]
    texts = PLAIN.sample_responses(prompt, 20_000, rng)
    events = np.array([gold(PLAIN, text) >= PLAIN.threshold for text in texts])
    value = PLAIN.prefix_value(prompt_ids(PLAIN, prompt))
    assert abs(events.mean() - value) < 4 * np.sqrt(value * (1 - value) / len(events))
    # Calibrated in the middle of responses, too.
    middle = np.array([PLAIN.prefix_values(full_ids(PLAIN, prompt, text))[50] for text in texts[:4000]])
    assert len(np.unique(middle.round(6))) > 10
    error = (events[:4000] - middle).sum()
    assert abs(error) < 4 * np.sqrt((middle * (1 - middle)).sum())


def test_a_word_that_may_or_may_not_go_on():
    """'Jan' is a name and the first piece of 'Janina': the next token tells."""
    language = SUBWORD
    ids = full_ids(language, PAPER_PROMPT, PAPER_OPENER + "respect their view with Jan")[:-1]
    probs = language.next_token_probs(ids)
    vocabulary = language.tokenizer.get_vocab()
    assert {int(token) for token in np.flatnonzero(probs)} == {vocabulary["##ina"], vocabulary["in"]}
    assert probs[vocabulary["in"]] == pytest.approx(0.5)
    assert language.token_probs(ids)[-1] == pytest.approx(2 / 150)


@pytest.mark.parametrize("name", ["default", "subword", "without held-out verbs", "never persistent"])
def test_sampled_tokens_have_the_exact_frequencies(name, rng):
    """Chi-square on the first verb (or its first piece), and on uncertain tokens after it."""
    language = VARIED[name]
    tokenizer, prompt = language.tokenizer, language.prompts[11]
    start = full_ids(language, prompt, OPENERS[language.topic(prompt)])[:-1]
    samples = language.sample_responses(prompt, 8000, rng)
    tails = [tokenizer.encode(text)[len(start) - len(prompt_ids(language, prompt)) :] for text in samples]
    p_values = []
    branches = [()]
    while branches and len(p_values) < 12:
        branch = branches.pop(0)
        counts = Counter(tail[len(branch)] for tail in tails if tuple(tail[: len(branch)]) == branch)
        probs = language.next_token_probs([*start, *branch])
        assert set(counts) <= set(np.flatnonzero(probs))
        n = counts.total()
        frequent = [token for token in np.flatnonzero(probs) if n * probs[token] >= 5]
        branches += [(*branch, token) for token in frequent if n * probs[token] > 150]
        if len(frequent) < 2:
            continue
        observed = np.array([counts[token] for token in frequent] + [n - sum(counts[t] for t in frequent)])
        expected = n * np.append(probs[frequent], max(1 - probs[frequent].sum(), 0))
        kept = expected > 1e-6
        statistic = ((observed - expected)[kept] ** 2 / expected[kept]).sum()
        p_values.append(stats.chi2.sf(statistic, kept.sum() - 1))
    assert len(p_values) == 12 and min(p_values) > 1e-4


def test_surprise_matches_entropy_along_whole_responses(rng):
    """log P(y_t) + entropy_t has mean zero given the past, so the sum is within 4 standard deviations."""
    total, variance = 0.0, 0.0
    for prompt, ids, _ in draw(PLAIN, rng, 60):
        log_probs = np.log(PLAIN.token_probs(ids))
        for stop in range(len(prompt), len(ids)):
            probs = PLAIN.next_token_probs(ids[:stop])
            logs = np.log(probs[probs > 0])
            entropy = -(probs[probs > 0] * logs).sum()
            total += log_probs[stop] + entropy
            variance += (probs[probs > 0] * logs**2).sum() - entropy**2
    assert variance > 100
    assert abs(total) < 4 * np.sqrt(variance)


def test_running_score_ends_at_the_gold_score_and_moves_at_quality_tokens(rng):
    for language in (PLAIN, SUBWORD, VARIED["always persistent"]):
        for prompt, ids, text in draw(language, rng, 20):
            (known,), marks = known_truth(language, [ids], [len(prompt)]), language.quality_tokens(ids)
            scores = np.concatenate([np.zeros(len(prompt)), known.clause_scores])
            assert scores.dtype == np.float64 and marks.dtype == bool
            assert scores[-1] == gold(language, text)
            assert marks.sum() == text.count(" with ") - text.count("deal with") - text.count("disagree with")
            assert not np.diff(scores, prepend=0.0)[~marks].any()


def test_quality_is_known_at_the_verb_or_where_a_shared_verb_parts():
    text = PAPER_OPENER + "protect weaker people with Maria in Oslo, then use kind words with Ken in Lima"
    ids = full_ids(PLAIN, PAPER_PROMPT, text)[:-1]
    marked = PLAIN.tokenizer.convert_ids_to_tokens(np.array(ids)[PLAIN.quality_tokens(ids)])
    assert marked == ["protect", "kind"]
    pieces = full_ids(SUBWORD, PAPER_PROMPT, text)[:-1]
    marked = SUBWORD.tokenizer.convert_ids_to_tokens(np.array(pieces)[SUBWORD.quality_tokens(pieces)])
    assert marked == ["##tec", "kind"]  # "pro" could still become "provoke"


def test_impossible_prefixes_name_token_and_position(rng):
    prompt, ids, _ = draw(PLAIN, rng, 1, PAPER_PROMPT)[0]
    broken = [*ids[:-1], ids[-1], ids[-2]]
    with pytest.raises(ValueError, match=rf"'\.' at position {len(ids)}: .*probability zero"):
        PLAIN.prefix_value(broken)
    place = len(prompt) + 2
    broken = [*ids[:place], PLAIN.tokenizer.convert_tokens_to_ids("Oslo"), *ids[place:]]
    for query in (PLAIN.token_probs, PLAIN.prefix_values, PLAIN.next_token_probs, PLAIN.quality_tokens):
        with pytest.raises(ValueError, match=f"'Oslo' at position {place}"):
            query(broken)
    # Grammatical, but too short, or with one clause too many.
    clause = "thank every guest with Ana in Rome"
    for n, token in ((2, "."), (8, ",")):
        ids = full_ids(PLAIN, PAPER_PROMPT, PAPER_OPENER + ", then ".join([clause] * n) + ".")
        with pytest.raises(ValueError, match=rf"'\{token}' at position"):
            PLAIN.prefix_value(ids)


def test_token_ids_may_be_any_integer_array(rng):
    ids = draw(PLAIN, rng, 1)[0][1]
    for array in (tuple(ids), np.array(ids, dtype=np.int32), torch.tensor(ids)):
        assert (PLAIN.prefix_values(array) == PLAIN.prefix_values(ids)).all()
