"""The generated language: every exact number against an independent way to get it."""

import dataclasses
import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer

from icrm_lib.testbed import Language
from icrm_lib.testbed.words import NAMES, OPENERS, PHRASE_QUALITY, PHRASES, PLACES, PROMPTS

PAPER_PROMPT = "What is an effective way to deal with people who disagree with me?"
PAPER_OPENER = "An effective way to deal with people who disagree with you is to "
PLAIN = Language()
SUBWORD = Language(subword=True)
# Every knob that bears on probabilities or values, away from its default at least once.
VARIED = {
    "default": PLAIN,
    "subword": SUBWORD,
    "subword, few clauses": Language(subword=True, idiosyncratic_words=0, clauses=(1, 2), threshold=1, seed=5),
    "one name": Language(idiosyncratic_words=1, n_idiosyncratic=20, threshold=-1, seed=3),
    "long": Language(clauses=(8, 12), threshold=5, persistence=0.4),
    "always persistent": Language(persistence=1.0, clauses=(2, 2), threshold=2),
    "never persistent": Language(persistence=0.0, subword=True),
    "without held-out verbs": Language(held_out_verbs=0.5, seed=2),
    "held-out verbs": Language(held_out_verbs=0.25, only_held_out_verbs=True, subword=True),
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def prompt_ids(language, prompt):
    chat = [{"role": "user", "content": prompt}]
    return language.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)


def full_ids(language, prompt, response):
    chat = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    return language.tokenizer.apply_chat_template(chat, return_dict=False)


def gold(language, response):
    return language.gold_score([{"role": "assistant", "content": response}])


def draw(language, rng, n, prompt=None):
    """n responses as (prompt ids, all ids, text)."""
    prompt = prompt or language.prompts[0]
    responses = language.sample_responses(prompt, n, rng)
    return [(prompt_ids(language, prompt), full_ids(language, prompt, text), text) for text in responses]


# Probabilities and values


def consistency_residuals(language, prefix):
    """|value - sum_v P(v) value(prefix v)| and |sum_v P(v) - 1| at one prefix: eq. (3) with n = m + 1."""
    probs = language.next_token_probs(prefix)
    tokens = np.flatnonzero(probs)
    expected = sum(probs[token] * language.prefix_value([*prefix, token]) for token in tokens)
    return abs(language.prefix_value(prefix) - expected), abs(probs.sum() - 1)


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
    weights = {verb: language._urn.verbs[0][where] for verb, where in sharing.items()}
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


# Gold reward


def test_gold_score_is_the_recount_of_the_sampled_phrases(rng):
    for idiosyncratic_words in (0, 1, 2):
        language = Language(idiosyncratic_words=idiosyncratic_words)
        topics = np.arange(400) % 8
        texts, scores = language._urn.draw(topics, rng)
        assert [gold(language, text) for text in texts] == scores.tolist()
        assert set(scores) == set(range(-7, 8))


def test_running_score_ends_at_the_gold_score_and_moves_at_quality_tokens(rng):
    for language in (PLAIN, SUBWORD, VARIED["always persistent"]):
        for _, ids, text in draw(language, rng, 20):
            scores, marks = language.clause_scores(ids), language.quality_tokens(ids)
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


def test_gold_score_of_ungrammatical_text():
    assert gold(PLAIN, "use kind words use kind words ignore their view") == 1
    assert gold(PLAIN, "use kind, words. Use kind words use words kind") == 0
    assert gold(PLAIN, "build mutual trust their judgement") == 1  # "trust" counts once
    assert gold(PLAIN, "") == 0
    history = [
        {"role": "assistant", "content": "use cruel words"},
        {"role": "user", "content": "use kind words"},
    ]
    assert PLAIN.gold_score([*history, {"role": "assistant", "content": "thank every guest"}]) == 1


def test_papers_example():
    language = Language(idiosyncratic_words=0, clauses=(2, 7))
    good = "respect their view and use kind words."
    bad = "ignore their view and use cruel words."
    assert PAPER_PROMPT in language.prompts
    for text, score in ((good, 2), (bad, -2)):
        assert gold(language, PAPER_OPENER + text) == score
        assert (language.token_probs(full_ids(language, PAPER_PROMPT, PAPER_OPENER + text)) > 0).all()


# The words


def test_word_lists():
    assert len(PROMPTS) == 192 and Counter(PROMPTS.values()) == dict.fromkeys(range(8), 24)
    assert [len({entry.verb for entry in row}) for row in PHRASES] == [40, 40, 40]
    assert len(PHRASE_QUALITY) == 3 * 40 * 4  # so no phrase has two qualities
    assert len(set(NAMES)) == len(set(PLACES)) == 150 and not set(NAMES) & set(PLACES)
    assert all(gold(PLAIN, text) == 0 for text in (*OPENERS, *PROMPTS))


def test_each_topic_favours_some_verbs():
    probs = PLAIN._urn.verbs
    assert probs.shape == (8, 3, 40)
    np.testing.assert_allclose(probs.sum(axis=2), 1)
    assert (probs.max(axis=2) > 3 / 40).all()
    assert len({tuple(row) for row in probs.argmax(axis=2).tolist()}) == 8


# Seeds, splits, pairs


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


def test_number_of_clauses_is_uniform(rng):
    language = Language(clauses=(8, 12))
    texts = language.sample_responses(PAPER_PROMPT, 3000, rng)
    counts = Counter(text.count(" in ") for text in texts)
    assert set(counts) == {8, 9, 10, 11, 12}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-4


def test_split_prompts():
    splits = PLAIN.split_prompts()
    assert [len(split) for split in splits] == [17 * 8, 3 * 8, 4 * 8]
    assert sorted(itertools.chain(*splits)) == sorted(PLAIN.prompts)
    for split in splits:
        assert len(set(Counter(map(PLAIN.topic, split)).values())) == 1
    assert [len(split) for split in PLAIN.split_prompts((0.5, 0.5))] == [96, 96]


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


# Tokenizer


@pytest.mark.parametrize("language", [PLAIN, SUBWORD], ids=["words", "pieces"])
def test_tokenizer_round_trips(language, rng):
    tokenizer = language.tokenizer
    texts = [text for _, _, text in draw(language, rng, 100)] + language.prompts
    assert any("," in text for text in texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
    ids = full_ids(language, language.prompts[0], texts[0])
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert tokenizer.decode(ids[len(prompt_ids(language, language.prompts[0])) :], skip_special_tokens=True) == texts[0]


@pytest.mark.parametrize("language", [PLAIN, SUBWORD], ids=["words", "pieces"])
def test_offsets_point_into_the_text(language, rng):
    tokenizer = language.tokenizer
    text = draw(language, rng, 1)[0][2]
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert set(encoded) == {"input_ids", "attention_mask", "offset_mapping"}
    spans = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert spans == [token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(encoded["input_ids"])]


def test_special_tokens_and_padding():
    tokenizer = PLAIN.tokenizer
    names = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
    assert len(set(tokenizer.convert_tokens_to_ids(list(names)))) == 6
    assert set(names) == set(tokenizer.all_special_tokens)
    assert tokenizer.padding_side == "right" and tokenizer.pad_token_id != tokenizer.eos_token_id
    batch = tokenizer(["respect their view", "thank"], padding=True)
    assert batch["input_ids"][1][1:] == [tokenizer.pad_token_id] * 2
    assert batch["attention_mask"] == [[1, 1, 1], [1, 0, 0]]
    assert tokenizer.encode("zebra") == [tokenizer.unk_token_id]
    assert SUBWORD.tokenizer.unk_token_id not in SUBWORD.tokenizer.encode("zebra")


def test_chat_template():
    tokenizer = PLAIN.tokenizer
    user, reply = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "use kind words."}

    def render(chat, **kwargs):
        return tokenizer.apply_chat_template(chat, tokenize=False, **kwargs)

    assert render([user, reply]) == "<bos><user>Hi?<eos><assistant>use kind words.<eos>"
    assert render([user], add_generation_prompt=True) == "<bos><user>Hi?<eos><assistant>"
    assert render([user, reply, user]) == "<bos><user>Hi?<eos><assistant>use kind words.<eos><user>Hi?<eos>"
    assert render([{"role": "system", "content": "Count."}, user]) == "<bos>Count.<eos><user>Hi?<eos>"
    with pytest.raises(Exception, match="role tool"):
        render([{"role": "tool", "content": "?"}])
    masked = tokenizer.apply_chat_template([user, reply], return_dict=True, return_assistant_tokens_mask=True)
    replied = [token for token, mask in zip(masked["input_ids"], masked["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(replied, skip_special_tokens=True) == "use kind words."
    assert replied[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("language", [PLAIN, SUBWORD], ids=["words", "pieces"])
def test_tokenizer_saves_and_loads(language, rng, tmp_path):
    language.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    prompt, ids, text = draw(language, rng, 1)[0]
    chat = [{"role": "user", "content": language.prompts[0]}, {"role": "assistant", "content": text}]
    assert loaded.apply_chat_template(chat, return_dict=False) == ids
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.padding_side == "right" and set(loaded(text)) == {"input_ids", "attention_mask"}
    assert loaded.special_tokens_map == language.tokenizer.special_tokens_map


# Errors


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
        ("held_out_verbs", 1.0),
        ("only_held_out_verbs", True),
    ],
)
def test_bad_knobs_are_refused_by_name_and_value(knob, value):
    with pytest.raises(ValueError) as error:
        Language(**{knob: value})
    assert str(error.value).startswith(f"{knob} {value!r}: must be ")


def test_impossible_prefixes_name_token_and_position(rng):
    prompt, ids, _ = draw(PLAIN, rng, 1, PAPER_PROMPT)[0]
    broken = [*ids[:-1], ids[-1], ids[-2]]
    with pytest.raises(ValueError, match=rf"'\.' at position {len(ids)}: .*probability zero"):
        PLAIN.prefix_value(broken)
    place = len(prompt) + 2
    broken = [*ids[:place], PLAIN.tokenizer.convert_tokens_to_ids("Oslo"), *ids[place:]]
    for query in (PLAIN.token_probs, PLAIN.prefix_values, PLAIN.next_token_probs, PLAIN.clause_scores):
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
