"""The truth at every token of a response is the language's own, and exactly equal where nothing changes."""

import numpy as np
import pytest
from rows import draw

from icrm_lib.testbed import Language, known_truth
from icrm_lib.testbed.words import NAMES, PHRASE_QUALITY, PLACES, WORD_OR_MARK


@pytest.mark.parametrize("name", ["plain", "subword"])
def test_truth_is_the_languages_own(name, language, drawn, truth):
    if name == "subword":
        language = Language(subword=True)
        drawn = draw(language, 30)
        truth = known_truth(language, *drawn[:2])
    assert len(truth) == len(drawn[0])
    for ids, start, text, known in zip(*drawn, truth, strict=True):
        assert all(len(array) == len(ids) - start for array in known)
        np.testing.assert_allclose(known.values, language.prefix_values(ids)[start:], rtol=0, atol=1e-12)
        np.testing.assert_allclose(np.exp(known.logprobs), language.token_probs(ids)[start:], rtol=0, atol=1e-12)
        assert known.logprobs.max() <= 0
        words = WORD_OR_MARK.findall(text)
        qualities = [PHRASE_QUALITY[w] for w in zip(words, words[1:], words[2:], strict=False) if w in PHRASE_QUALITY]
        assert known.quality[~np.isnan(known.quality)].tolist() == qualities
        assert known.clause_scores.tolist() == np.cumsum(np.nan_to_num(known.quality)).tolist()
        assert known.values[-1] == float(sum(qualities) >= language.threshold)


def test_nothing_changes_at_idiosyncratic_words_to_the_last_bit(language, drawn, truth):
    idiosyncratic = {*language.tokenizer.convert_tokens_to_ids([*NAMES, *PLACES])}
    moved = seen = 0
    for ids, start, _, known in zip(*drawn, truth, strict=True):
        here = np.isin(ids[start:], list(idiosyncratic))[1:]
        assert (np.diff(known.values)[here] == 0).all() and np.isnan(known.quality[1:][here]).all()
        moved += (np.diff(language.prefix_values(ids)[start:])[here] != 0).sum()
        seen += here.sum()
    assert seen > 1000 and moved > 0  # the values as computed do move, by rounding


def test_truth_does_not_depend_on_the_company(language, drawn, truth):
    rows, starts, _ = drawn
    alone = known_truth(language, [np.array(rows[7])], np.array(starts[7:8]))[0]
    for one, other in zip(alone, truth[7], strict=True):
        np.testing.assert_array_equal(one, other)


def test_truth_refuses_by_the_number_of_the_response(language, drawn):
    rows, starts, _ = drawn
    for wrong in (starts[1] - 1, starts[1] + 1, 0, starts[1] - len(rows[1]), len(rows[1]) + 1):
        with pytest.raises(ValueError, match=f"response 1 .* cannot start at {wrong}: .* <assistant>"):
            known_truth(language, rows[:2], [starts[0], wrong])
    foreign = [*rows[1][:-1], rows[1][0], rows[1][-1]]
    with pytest.raises(ValueError, match=r"response 1: token .* at position"):
        known_truth(language, [rows[0], foreign], starts[:2])
    for some in ([], rows[:2]):
        with pytest.raises(ValueError, match=f"got {len(some)} rows and 0 starts"):
            known_truth(language, some, [])
