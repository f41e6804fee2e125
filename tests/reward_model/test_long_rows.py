"""Rows that are too long, and RoPE that depends on the batch: the score of a row alone, or an error before the pass."""

import copy

import numpy as np
import pytest
import torch

from icrm_lib.language_model.positions import SequenceTooLong
from icrm_lib.reward_model import RewardModel
from icrm_lib.reward_model.scoring import PrefixScorer, token_scores
from tests.architectures import POSITIONS, ROPES, random_rows, tiny_classifier

LEARNED_AND_ROTARY = ("gpt2", "opt", "gptj", "gpt_neo", "llama", "gpt_neox", "phi")
SHORT, LONG, LONGER = 40, 100, 180  # tokens; frequencies change behind 64


def rewards_alone(model, row):
    """By `transformers`, with a model that has seen nothing else."""
    model = copy.deepcopy(model)
    hidden = []
    hook = model.score.register_forward_hook(lambda module, args, result: hidden.append(result[0, :, 0]))
    with torch.no_grad():
        model(torch.tensor([row]))
    hook.remove()
    return hidden[0].numpy()


def changing(kind):
    length = 64 if kind == "dynamic" else POSITIONS
    return tiny_classifier("llama", rope_parameters=ROPES[kind], max_position_embeddings=length)


@pytest.mark.parametrize("kind", ROPES)
def test_a_score_is_that_of_the_row_alone(kind):
    model, rows = changing(kind), random_rows(SHORT, LONG, LONGER, 63, 64, 65)
    want = [rewards_alone(model, row) for row in rows]
    if kind in ("dynamic", "longrope"):  # the case: beside a longer row, the model itself gives another score
        beside = torch.tensor([rows[0] + [0] * (LONG - SHORT), rows[1]])
        with torch.no_grad():
            hidden = copy.deepcopy(model).model(beside).last_hidden_state
        assert abs(model.score(hidden)[0, SHORT - 1, 0].item() - want[0][-1]) > 1e-3
    for order in ([0], [0, 1, 2, 3, 4, 5], [2, 4], [5, 4, 3, 2, 1, 0], [1], [3, 0]):
        got = token_scores(model, [rows[i] for i in order], [0] * len(order), pad_token_id=0)
        for values, i in zip(got, order, strict=True):
            np.testing.assert_allclose(values, want[i], atol=1e-5)


@pytest.mark.parametrize("kind", ROPES)
def test_a_shared_prompt_changes_no_score(kind):
    model, (prompt, *answers) = changing(kind), random_rows(50, 5, 14, 15, 90)
    rows = [prompt + answer for answer in answers]
    got = token_scores(model, rows, [50] * 4, pad_token_id=0)
    for values, row in zip(got, rows, strict=True):
        np.testing.assert_allclose(values, rewards_alone(model, row)[50:], atol=1e-5)


@pytest.mark.parametrize("kind", ROPES)
def test_a_stream_gives_the_rewards_of_what_is_there(kind):
    model, (row,) = changing(kind), random_rows(LONG)
    scorer = PrefixScorer(model)
    for length in (10, 63, 64, 65, LONG, 66, 50, 64, LONG, 12, 13):
        np.testing.assert_allclose(scorer.update(row[:length]), rewards_alone(model, row[:length]), atol=1e-5)


@pytest.mark.parametrize("kind", LEARNED_AND_ROTARY)
def test_a_row_beyond_the_models_positions_is_an_error_before_the_pass(kind, monkeypatch):
    model, rows = tiny_classifier(kind), random_rows(5, POSITIONS, POSITIONS + 1)
    got = token_scores(model, rows[:2], [0, 0], pad_token_id=0)
    np.testing.assert_allclose(got[1], rewards_alone(model, rows[1]), atol=1e-5)
    assert len(PrefixScorer(model).update(rows[1])) == POSITIONS
    monkeypatch.setattr(model, "forward", None)
    message = (
        f"row {{}} has {POSITIONS + 1} tokens, the model has positions for {POSITIONS}; give max_length={POSITIONS}"
    )
    with pytest.raises(SequenceTooLong, match=message.format(2)):
        token_scores(model, rows, [0, 0, 0], pad_token_id=0)
    with pytest.raises(SequenceTooLong, match=message.format(0)):
        PrefixScorer(model).update(rows[2])


def test_models_without_positions_take_any_length():
    for model in (tiny_classifier("bloom"), tiny_classifier("falcon", alibi=True, max_position_embeddings=64)):
        (row,) = random_rows(POSITIONS + 44)
        got = token_scores(model, [row], [0], pad_token_id=0)[0]
        np.testing.assert_allclose(got, rewards_alone(model, row), atol=1e-5)


def test_a_conversation_is_cut_where_a_length_is_given(tokenizer):
    model = RewardModel(tiny_classifier("gpt2", vocab_size=len(tokenizer)), copy.deepcopy(tokenizer))
    question = {"role": "user", "content": " ".join(["word"] * 400)}
    talk = [question, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(SequenceTooLong, match=f"row 1 .*max_length={POSITIONS}"):
        model.score([[{**question, "content": "word"}, talk[1]], talk])
    assert np.isfinite(model.score([talk], max_length=POSITIONS)).all()
    with pytest.raises(SequenceTooLong, match=f"max_length={POSITIONS}"):
        model.stream([question]).update("Yes.")
