"""The closing readout: a tree in one forward pass gives what each prefix with the closing tokens gives alone."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from icrm_lib.language_model.positions import SequenceTooLong
from icrm_lib.reward_model import RewardModel
from icrm_lib.reward_model.closing import closing_scores
from icrm_lib.testbed import Language
from tests.reward_model.test_scoring import CONFIGS, one_by_one


def reward_model(config, attention="sdpa"):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        model.score.weight.mul_(30)
    return model


def by_hand(model, row, start, closing):
    """Each prefix with the closing tokens, alone; the closing tokens of a row that has them are its end."""
    stop = len(row) - len(closing) if row[-len(closing) :] == closing else len(row)
    prefixes = [row[: min(place + 1, stop)] + closing for place in range(start, len(row))]
    return np.concatenate(one_by_one(model, prefixes, [len(prefix) - 1 for prefix in prefixes]))


@pytest.mark.parametrize("closing", [[7], [7, 9]])
@pytest.mark.parametrize(
    ("kind", "attention"),
    [("llama", "sdpa"), ("llama", "eager"), ("qwen3", "sdpa"), ("gemma3 with a sliding window", "sdpa")],
)
def test_every_prefix_is_read_as_if_it_ended_there(kind, attention, closing):
    model, rng = reward_model(CONFIGS[kind], attention), np.random.default_rng(0)
    rows = [rng.integers(10, 120, length).tolist() for length in (9, 30, 21, 2, 45)]
    rows = [row + closing * (number % 2) for number, row in enumerate(rows)]
    starts = [4, 11, 0, 1, 44]
    got = closing_scores(model, rows, starts, closing, pad_token_id=0)
    for row, start, values in zip(rows, starts, got, strict=True):
        assert values.dtype == np.float32 and values.shape == (len(row) - start,)
        np.testing.assert_allclose(values, by_hand(model, row, start, closing), atol=2e-5)
    for batch_size in (1, 2):
        again = closing_scores(model, rows, starts, closing, pad_token_id=0, batch_size=batch_size)
        np.testing.assert_allclose(np.concatenate(again), np.concatenate(got), atol=2e-5)


def test_a_start_at_the_closing_token_gives_the_score_of_the_whole():
    model = reward_model(CONFIGS["llama"])
    row = [11, 12, 13, 14, 7, 9]
    for start in (4, 5):
        (values,) = closing_scores(model, [row], [start], [7, 9], pad_token_id=0)
        np.testing.assert_allclose(values, [one_by_one(model, [row], [5])[0][0]] * (6 - start), atol=1e-5)


def test_the_closing_tokens_alone_are_a_row_like_any_other():
    model = reward_model(CONFIGS["llama"])
    (values,) = closing_scores(model, [[7, 9]], [0], [7, 9], pad_token_id=0)
    np.testing.assert_allclose(values, np.concatenate(one_by_one(model, [[7, 7, 9], [7, 9, 7, 9]], [2, 3])), atol=1e-5)


def test_a_row_that_has_no_room_for_its_closing_token_is_refused():
    model = reward_model(CONFIGS["llama"])
    assert model.config.max_position_embeddings == 512
    with pytest.raises(SequenceTooLong, match="513 tokens"):
        closing_scores(model, [[5] * 512], [3], [7], pad_token_id=0)


@pytest.fixture(scope="module")
def toy():
    language = Language()
    config = CONFIGS["llama"].__class__(**{**CONFIGS["llama"].to_dict(), "vocab_size": len(language.tokenizer)})
    return RewardModel(reward_model(config), language.tokenizer)


def talk(text):
    return [{"role": "user", "content": "How do I calm an angry neighbour?"}, {"role": "assistant", "content": text}]


def test_token_rewards_are_the_scores_of_the_response_cut_there(toy):
    text = "You should respect their view."
    tokens = toy.token_rewards(talk(text), readout="closing")
    assert [t.text for t in tokens] == [t.text for t in toy.token_rewards(talk(text))]
    assert tokens[-1].text == "" and tokens[-1].reward == tokens[-2].reward
    cut = toy.score([talk(text[: token.end]) for token in tokens if token.text])
    np.testing.assert_allclose([token.reward for token in tokens[:-1]], cut, atol=1e-5)
    place = np.array([token.reward for token in toy.token_rewards(talk(text))])
    assert np.abs(place - [token.reward for token in tokens])[:-1].max() > 0.1
    np.testing.assert_allclose(place[-1], tokens[-1].reward, atol=1e-5)


def test_prefixes_are_scored_as_if_they_ended(toy):
    texts, finished = ["You should", "You should respect their view.", "You"], [False, True, False]
    got = toy.score_prefixes(talk("x")[:1], texts, finished, readout="closing")
    np.testing.assert_allclose(got, toy.score([talk(text) for text in texts]), atol=1e-5)
    with pytest.raises(ValueError, match="'closing'"):
        toy.score_prefixes(talk("x")[:1], texts, finished, readout="end")
