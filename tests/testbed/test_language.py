"""Words, gold score, seeds, splits, knobs and errors of the generated language."""

import dataclasses
import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pytest
from languages import PAPER_OPENER, PAPER_PROMPT, PLAIN, SUBWORD, draw, full_ids, gold, prompt_ids

from icrm_lib.testbed import Language
from icrm_lib.testbed.words import NAMES, OPENERS, PHRASE_QUALITY, PHRASES, PLACES, PROMPTS


def test_gold_score_is_the_recount_of_the_sampled_phrases(rng):
    for idiosyncratic_words in (0, 1, 2):
        language = Language(idiosyncratic_words=idiosyncratic_words)
        topics = np.arange(400) % 8
        texts, scores = language._chances.draw(topics, rng)
        assert [gold(language, text) for text in texts] == scores.tolist()
        assert set(scores) == set(range(-7, 8))


def test_gold_score_of_ungrammatical_text():
    assert gold(PLAIN, "use kind words use kind words ignore their view") == 1
    assert gold(PLAIN, "use kind, words. Use kind words use words kind") == 0
    assert gold(PLAIN, "build mutual trust their judgement") == 1  # "trust" counts once
    assert gold(PLAIN, "") == 0
    history = [{"role": "assistant", "content": "use cruel words"}, {"role": "user", "content": "use kind words"}]
    assert PLAIN.gold_score([*history, {"role": "assistant", "content": "thank every guest"}]) == 1


def test_papers_example():
    language = Language(idiosyncratic_words=0, clauses=(2, 7))
    good = "respect their view and use kind words."
    bad = "ignore their view and use cruel words."
    assert PAPER_PROMPT in language.prompts
    for text, score in ((good, 2), (bad, -2)):
        assert gold(language, PAPER_OPENER + text) == score
        assert (language.token_probs(full_ids(language, PAPER_PROMPT, PAPER_OPENER + text)) > 0).all()


def test_word_lists():
    assert len(PROMPTS) == 192 and Counter(PROMPTS.values()) == dict.fromkeys(range(8), 24)
    assert [len({entry.verb for entry in row}) for row in PHRASES] == [40, 40, 40]
    assert len(PHRASE_QUALITY) == 3 * 40 * 4  # so no phrase has two qualities
    assert len(set(NAMES)) == len(set(PLACES)) == 150 and not set(NAMES) & set(PLACES)
    assert all(gold(PLAIN, text) == 0 for text in (*OPENERS, *PROMPTS))


def test_each_topic_favours_some_verbs():
    probs = PLAIN._chances.verbs
    assert probs.shape == (8, 3, 40)
    np.testing.assert_allclose(probs.sum(axis=2), 1)
    assert (probs.max(axis=2) > 3 / 40).all()
    assert len({tuple(row) for row in probs.argmax(axis=2).tolist()}) == 8


def test_seeds():
    def facts(language):
        rng = np.random.default_rng(1)
        return language.prompts, language.split_prompts(), language.sample_responses(PAPER_PROMPT, 20, rng)

    assert facts(Language(seed=4)) == facts(Language(seed=4))
    for one, other in zip(facts(Language(seed=4)), facts(Language(seed=5)), strict=True):
        assert one != other
    assert sorted(Language(seed=4).prompts) == sorted(Language(seed=5).prompts)


def test_config_is_plain_and_rebuilds_the_language():
    language = Language(seed=np.int64(3), clauses=(2, 5), persistence=np.float64(0.5), subword=True)
    config = json.loads(json.dumps(language.config()))
    assert set(config) == {field.name for field in dataclasses.fields(Language)}
    assert Language(**config) == language and hash(Language(**config)) == hash(language)
    changed = {name: Language(**{name: value}).config() for name, value in {"seed": 1, "clauses": (3, 8)}.items()}
    assert all(config != Language().config() for config in changed.values())


def test_replace_keeps_the_vocabulary_and_pickles():
    longer = dataclasses.replace(PLAIN, clauses=(8, 12), idiosyncratic_words=0, seed=9, held_out_verbs=0.5)
    assert longer.tokenizer.get_vocab() == PLAIN.tokenizer.get_vocab()
    assert SUBWORD.tokenizer.get_vocab() != PLAIN.tokenizer.get_vocab()
    ids = prompt_ids(PLAIN, PAPER_PROMPT)
    assert pickle.loads(pickle.dumps(PLAIN)).prefix_value(ids) == PLAIN.prefix_value(ids)


def test_split_prompts():
    splits = PLAIN.split_prompts()
    assert [len(split) for split in splits] == [17 * 8, 3 * 8, 4 * 8]
    assert sorted(itertools.chain(*splits)) == sorted(PLAIN.prompts)
    for split in splits:
        assert len(set(Counter(map(PLAIN.topic, split)).values())) == 1
    assert [len(split) for split in PLAIN.split_prompts((0.5, 0.5))] == [96, 96]


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("seed", -1),
        ("seed", 0.5),
        ("idiosyncratic_words", 3),
        ("idiosyncratic_words", True),
        ("n_idiosyncratic", 301),
        ("n_idiosyncratic", 15),
        ("persistence", 1.1),
        ("persistence", float("nan")),
        ("clauses", (3, 2)),
        ("clauses", (0, 2)),
        ("clauses", (1, 41)),
        ("clauses", 3),
        ("threshold", 2.5),
        ("preference_noise", -1),
        ("preference_noise", float("inf")),
        ("length_confounding", -1.5),
        ("subword", "yes"),
        ("verbs_per_class", 0),
        ("verbs_per_class", 41),
        ("verbs_per_class", 5.0),
        ("coupling", 1.0),
        ("coupling", -1),
        ("coupling", float("nan")),
        ("alternative_probability", 1.5),
        ("linking_words", 1),
        ("held_out_verbs", 1.0),
        ("only_held_out_verbs", True),
    ],
)
def test_bad_knobs_are_refused_by_name_and_value(knob, value):
    with pytest.raises(ValueError) as error:
        Language(**{knob: value})
    assert str(error.value).startswith(f"{knob} {value!r}: must be ")


def test_other_errors(rng):
    with pytest.raises(ValueError, match="did you mean"):
        PLAIN.topic(PAPER_PROMPT.removesuffix("?"))
    with pytest.raises(ValueError, match="begin with a prompt"):
        PLAIN.token_probs(PLAIN.tokenizer.encode("thank every guest"))
    with pytest.raises(ValueError, match="one-dimensional"):
        PLAIN.token_probs([prompt_ids(PLAIN, PAPER_PROMPT)])
    with pytest.raises(ValueError, match="one-dimensional integers"):
        PLAIN.token_probs([])
    with pytest.raises(ValueError, match="<eos>"):
        PLAIN.next_token_probs(draw(PLAIN, rng, 1)[0][1])
    with pytest.raises(ValueError, match="reply"):
        PLAIN.gold_score([{"role": "user", "content": "use kind words"}])
    with pytest.raises(ValueError, match="sum 1"):
        PLAIN.split_prompts((0.5, 0.2))
    with pytest.raises(ValueError, match="at least one prompt"):
        PLAIN.preference_pairs(1, rng, prompts=[])
    same_length = Language(clauses=(1, 1), length_confounding=1.0)
    with pytest.raises(ValueError, match="length_confounding 1.0"):
        same_length.preference_pairs(1, rng)
