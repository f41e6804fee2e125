"""Responses and labelled pairs drawn from the language."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from languages import PAPER_PROMPT, PLAIN, full_ids, gold
from scipy import stats

from icrm_lib.testbed import Language
from icrm_lib.testbed.words import OPENERS, PHRASE_QUALITY, PHRASES


def test_number_of_clauses_is_uniform(rng):
    language = Language(clauses=(8, 12))
    texts = language.sample_responses(PAPER_PROMPT, 3000, rng)
    counts = Counter(text.count(" in ") for text in texts)
    assert set(counts) == {8, 9, 10, 11, 12}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_pairs_are_consistent_rows(rng):
    prompts = PLAIN.prompts[:5]
    rows = PLAIN.preference_pairs(300, rng, prompts=prompts)
    assert len(rows) == 300 and {row["prompt"] for row in rows} == set(prompts)
    for row in rows:
        assert set(row) == {"prompt", "chosen", "rejected", "chosen_score", "rejected_score"}
        assert row["chosen"] != row["rejected"]
        for side in ("chosen", "rejected"):
            assert gold(PLAIN, row[side]) == row[f"{side}_score"]
            assert row[side].startswith(OPENERS[PLAIN.topic(row["prompt"])])
    again = PLAIN.preference_pairs(300, np.random.default_rng(0), prompts=prompts)
    assert again == rows


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
def test_labels_follow_bradley_terry(noise, rng):
    """Among pairs whose scores differ by d, the better one is chosen with probability sigmoid(d / noise)."""
    rows = Language(preference_noise=noise).preference_pairs(4000, rng)
    difference = np.array([row["chosen_score"] - row["rejected_score"] for row in rows])
    for size in (1, 2, 3):
        wins, n = (difference == size).sum(), (np.abs(difference) == size).sum()
        p = 1 / (1 + np.exp(-size / noise))
        assert n > 200 and abs(wins - n * p) < 4 * np.sqrt(n * p * (1 - p))


def test_noiseless_labels(rng):
    rows = Language(preference_noise=0).preference_pairs(1000, rng)
    assert all(row["chosen_score"] >= row["rejected_score"] for row in rows)
    assert any(row["chosen_score"] == row["rejected_score"] for row in rows)


def test_identical_responses_are_drawn_again(rng):
    language = Language(
        clauses=(1, 1), idiosyncratic_words=0, held_out_verbs=0.025, only_held_out_verbs=True, persistence=1.0
    )
    texts = language.sample_responses(PAPER_PROMPT, 200, rng)
    assert len(set(texts)) <= 12  # three verbs, four phrases each: collisions abound
    assert all(row["chosen"] != row["rejected"] for row in language.preference_pairs(200, rng))


def test_length_confounding(rng):
    def longer_share(confounding):
        rows = Language(length_confounding=confounding).preference_pairs(600, rng)
        lengths = [[len(row[side].replace(",", " ,").split()) for side in ("chosen", "rejected")] for row in rows]
        return np.mean([np.sign(chosen - rejected) for chosen, rejected in lengths])

    assert longer_share(1.0) == 1
    assert longer_share(-1.0) == -1
    assert abs(longer_share(0.0)) < 0.2
    assert 0.2 < longer_share(0.6) < 0.9 and -0.9 < longer_share(-0.6) < -0.2


def test_held_out_verbs(rng):
    def verbs(language):
        found = set()
        for prompt in language.prompts[::12]:
            for text in language.sample_responses(prompt, 200, rng):
                words = text.rstrip(".").replace(",", "").split()
                triples = zip(words, words[1:], words[2:], strict=False)
                found |= {triple[0] for triple in triples if triple in PHRASE_QUALITY}
        return found

    without = Language(held_out_verbs=0.25)
    only = dataclasses.replace(without, only_held_out_verbs=True)
    seen, unseen = verbs(without), verbs(only)
    assert not seen & unseen
    assert len(unseen) == 30 and seen | unseen == {entry.verb for row in PHRASES for entry in row}
    response = only.sample_responses(PAPER_PROMPT, 1, rng)[0]
    with pytest.raises(ValueError, match="probability zero"):
        without.token_probs(full_ids(without, PAPER_PROMPT, response))
    assert gold(without, response) == gold(only, response)
