"""The critic: the truth when it does not err, and errors at the rates that were set."""

import numpy as np
import pytest
from rows import draw

from icrm_lib.testbed import Critic, Language, known_truth
from icrm_lib.testbed.words import CONNECTORS, PHRASE_QUALITY, WORD_OR_MARK

LINKS = {word for link, _ in CONNECTORS for word in WORD_OR_MARK.findall(link)}


def clause_marks(labels, truth):
    """(true quality, mark) of every clause, read at the token that reveals it."""
    pairs = [(t.quality[i], marks[i]) for t, marks in zip(truth, labels, strict=True) for i in revealing(t)]
    return np.array(pairs).T


def revealing(known):
    return np.flatnonzero(~np.isnan(known.quality))


def test_without_errors_words_are_the_truth(language, drawn, truth):
    for known, labels in zip(truth, Critic().labels(language, *drawn[:2]), strict=True):
        assert labels.dtype == np.int8
        np.testing.assert_array_equal(labels, np.nan_to_num(known.quality))


@pytest.mark.parametrize("subword", [False, True])
def test_clauses_are_marked_from_the_phrase_to_the_place(subword):
    language = Language(subword=subword)
    rows, starts, texts = draw(language, 20)
    labels = Critic(span="clause").labels(language, rows, starts)
    for ids, start, text, marks in zip(rows, starts, texts, labels, strict=True):
        words, expected = WORD_OR_MARK.findall(text), []
        mark = 0
        for place, word in enumerate(words):  # a clause goes on until a connector or the full stop
            mark = PHRASE_QUALITY.get(tuple(words[place : place + 3]), 0 if word in {*LINKS, "."} else mark)
            expected.append(mark)
        pieces = language.tokenizer.convert_ids_to_tokens(ids[start:])
        first = [not piece.startswith("##") for piece in pieces]
        np.testing.assert_array_equal(marks[first], [*expected, 0])
        word = np.cumsum(first)
        assert all(len(set(marks[word == number])) == 1 for number in set(word))


def test_all_pieces_of_a_revealing_word_are_marked():
    language = Language(subword=True)
    rows, starts, _ = draw(language, 20)
    pieces_marked = 0
    for ids, start, known, marks in zip(
        rows, starts, known_truth(language, rows, starts), Critic().labels(language, rows, starts), strict=True
    ):
        word = np.cumsum(
            [not piece.startswith("##") for piece in language.tokenizer.convert_ids_to_tokens(ids[start:])]
        )
        here = np.isin(word, word[revealing(known)])
        assert (marks[~here] == 0).all()
        assert (marks[revealing(known)] == known.quality[revealing(known)]).all()
        pieces_marked += np.count_nonzero(marks) - np.count_nonzero(np.nan_to_num(known.quality))
    assert pieces_marked > 20


@pytest.mark.parametrize("span", ["word", "clause"])
def test_measured_rates_are_the_knobs(span, language, drawn, truth):
    critic = Critic(miss=0.3, false_alarm=0.15, span=span)
    quality, mark = clause_marks(critic.labels(language, *drawn[:2]), truth)
    neutral = quality == 0
    for asked, events in ((0.3, mark[~neutral] == 0), (0.15, mark[neutral] != 0)):
        assert abs(events.mean() - asked) < 4 * np.sqrt(asked * (1 - asked) / len(events))
    kept = ~neutral & (mark != 0)
    assert (mark[kept] == quality[kept]).all()
    alarms = mark[neutral & (mark != 0)]
    assert abs(alarms.mean()) < 4 / np.sqrt(len(alarms))


def test_draws_repeat_whatever_the_company_and_change_with_the_seed(language, drawn):
    rows, starts, _ = drawn
    critic = Critic(miss=0.5, false_alarm=0.5)
    together = critic.labels(language, rows[:40], starts[:40])
    alone = [critic.labels(language, [row], [start])[0] for row, start in zip(rows[:40], starts[:40], strict=True)]
    assert all((a == b).all() for a, b in zip(together, alone, strict=True))
    other = Critic(miss=0.5, false_alarm=0.5, seed=1).labels(language, rows[:40], starts[:40])
    assert any((a != b).any() for a, b in zip(together, other, strict=True))


def test_a_higher_rate_keeps_the_errors_of_a_lower_one(language, drawn, truth):
    few, many = (Critic(miss=rate, false_alarm=rate).labels(language, *drawn[:2]) for rate in (0.1, 0.4))
    (quality, before), (_, after) = clause_marks(few, truth), clause_marks(many, truth)
    wrong = before != quality
    assert 0 < wrong.sum() < (after != quality).sum() and (after[wrong] == before[wrong]).all()


def test_rates_and_spans_are_checked():
    with pytest.raises(ValueError, match=r"miss is 1.5; .* \[0, 1\]"):
        Critic(miss=1.5)
    with pytest.raises(ValueError, match="false_alarm is nan"):
        Critic(false_alarm=float("nan"))
    with pytest.raises(ValueError, match="span is 'phrase'; give 'word' or 'clause'"):
        Critic(span="phrase")
