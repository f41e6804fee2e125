"""A model of another tool is scored as transformers scores its directory, at the last token that is not padding."""

import json
import logging

import numpy as np
import pytest
import torch
from rows import assistant, user
from styles import LOSSLESS, ORDINARY, STYLES, raw_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, Qwen2Config

from icrm_lib.reward_model import RewardModel
from icrm_lib.tokenization import prepare_tokenizer, reads

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
}


def save_scorer(folder, tokenizer, config_class=LlamaConfig, **options):
    """Write a one-label model with random weights as another tool would."""
    torch.manual_seed(0)
    config = config_class(vocab_size=len(tokenizer) + 8, num_labels=1, initializer_range=0.2, **SIZES, **options)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        model.score.weight.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_scores(folder, talks, tokenizer=None):
    """What transformers itself gives, one conversation at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [torch.tensor([tokenizer.apply_chat_template(talk, return_dict=False)]) for talk in talks]
        return [model(input_ids=row).logits.item() for row in rows]


def check_reading(model, talks, right):
    """Scores, token rewards, streams and prefixes of a model agree with the right scores."""
    close = {"atol": 2e-5, "rtol": 1e-5}
    np.testing.assert_allclose(model.score(talks), right, **close)
    np.testing.assert_allclose(model.score(talks, batch_size=1), right, **close)
    assert np.ptp(right) > 0.1
    for talk, score in zip(talks, right, strict=True):
        assert model.token_rewards(talk)[-1].reward == pytest.approx(score, abs=5e-5)
        finished = model.stream(talk[:-1]).update(talk[-1]["content"], finished=True)
        assert finished[-1].reward == pytest.approx(score, abs=5e-5)
        whole = model.score_prefixes(talk[:-1], [talk[-1]["content"]], [True])
        assert whole[0] == pytest.approx(score, abs=5e-5)


@pytest.mark.parametrize("padding", ["own", "closing", "none"])
@pytest.mark.parametrize("style", STYLES)
def test_every_template_is_read_where_transformers_reads_it(style, padding, tmp_path):
    tokenizer = raw_tokenizer(style)
    if padding == "closing":
        tokenizer.pad_token = STYLES[style][-1][0]
    pad = {"own": tokenizer.pad_token_id, "closing": tokenizer.pad_token_id, "none": None}[padding]
    folder = save_scorer(tmp_path / "foreign", tokenizer, pad_token_id=pad)
    right = plain_scores(folder, ORDINARY, tokenizer)
    model = RewardModel.from_pretrained(folder)
    assert reads(model.tokenizer) == "last"
    check_reading(model, ORDINARY, right)
    model.save_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(plain_scores(tmp_path / "saved", ORDINARY), right, atol=2e-5)
    check_reading(RewardModel.from_pretrained(tmp_path / "saved"), ORDINARY, right)
    assert json.loads((tmp_path / "saved" / "config.json").read_text()).get("icrm_reads") is None


@pytest.mark.parametrize("style", LOSSLESS)
def test_tokens_of_the_response_have_their_places_and_what_stands_behind_has_no_text(style, tmp_path):
    tokenizer = raw_tokenizer(style)
    model = RewardModel.from_pretrained(save_scorer(tmp_path, tokenizer, pad_token_id=tokenizer.pad_token_id))
    for talk in ORDINARY:
        response, tokens = talk[-1]["content"], model.token_rewards(talk)
        assert all(response[t.start : t.end] == t.text for t in tokens)
        covered = {i for t in tokens for i in range(t.start, t.end)}
        assert {i for i, c in enumerate(response) if not c.isspace()} <= covered


def test_a_batch_of_a_model_without_padding_token_is_read_at_the_end(tmp_path):
    tokenizer = raw_tokenizer("qwen2.5")
    tokenizer.pad_token = tokenizer.eos_token
    right = plain_scores(save_scorer(tmp_path, tokenizer, pad_token_id=None), ORDINARY, tokenizer)
    model = RewardModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(model.score(ORDINARY, batch_size=8), right, atol=2e-5)
    assert model.model.config.pad_token_id == model.tokenizer.pad_token_id


def test_a_closing_token_that_pads_is_said(tmp_path, caplog):
    tokenizer = raw_tokenizer("llama3")
    tokenizer.pad_token = "<|eot_id|>"
    save_scorer(tmp_path, tokenizer, pad_token_id=tokenizer.pad_token_id)
    with caplog.at_level(logging.WARNING):
        RewardModel.from_pretrained(tmp_path)
    assert "'<|eot_id|>' is the padding token" in caplog.text and "the token before" in caplog.text


def test_own_models_are_read_at_the_closing_token(tmp_path):
    tokenizer = prepare_tokenizer(raw_tokenizer("qwen2.5"))
    save_scorer(tmp_path / "model", tokenizer, pad_token_id=tokenizer.pad_token_id)
    own = RewardModel.from_pretrained(tmp_path / "model")
    assert reads(own.tokenizer) == "closing" and own.model.config.icrm_reads == "closing"
    own.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["icrm_reads"] == "closing"
    right = own.score(ORDINARY)
    raw_tokenizer("qwen2.5").save_pretrained(tmp_path / "saved")  # a tokenizer without our marks: the model has one
    again = RewardModel.from_pretrained(tmp_path / "saved")
    assert reads(again.tokenizer) == "closing"
    np.testing.assert_allclose(again.score(ORDINARY), right, atol=1e-5)


def test_a_tokenizer_of_ones_own_in_a_qwen2_directory_is_the_one_of_its_file(tmp_path, caplog):
    """`AutoTokenizer` makes a Qwen2Tokenizer of it, which cuts otherwise."""
    tokenizer = raw_tokenizer("qwen2.5")
    tokenizer.backend_tokenizer.pre_tokenizer = raw_tokenizer("llama3").backend_tokenizer.pre_tokenizer
    talks = [
        [user("Which of 1234567?"), assistant(text)] for text in ("12345 it is.\n\nOr wait.", "I DON'T know 77777")
    ]
    save_scorer(tmp_path / "a", tokenizer, Qwen2Config, pad_token_id=tokenizer.pad_token_id)
    right = plain_scores(tmp_path / "a", talks, tokenizer)
    model = RewardModel.from_pretrained(tmp_path / "a")
    np.testing.assert_allclose(model.score(talks), right, atol=2e-5)
    model.save_pretrained(tmp_path / "b")
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path / "b").score(talks), right, atol=2e-5)
    np.testing.assert_allclose(plain_scores(tmp_path / "b", talks), right, atol=2e-5)  # other tools, too
    assert json.loads((tmp_path / "b" / "config.json").read_text())["model_type"] == "llama" and not caplog.text
    model.model.config.use_sliding_window = True  # which Llama has not
    model.save_pretrained(tmp_path / "c")
    assert "takes the saved tokenizer for a Qwen2Tokenizer" in caplog.text
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path / "c").score(talks), right, atol=2e-5)


def test_more_tokens_than_embeddings_are_refused(tmp_path):
    tokenizer = raw_tokenizer("llama3")
    save_scorer(tmp_path, tokenizer, pad_token_id=tokenizer.pad_token_id)
    tokenizer.add_tokens([f"<more {i}>" for i in range(9)])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer has \d+ tokens, the model embeddings for \d+; give the tokenizer"):
        RewardModel.from_pretrained(tmp_path)
