"""The generator is asked about a row as if it stood alone, and not about one that it has no positions for."""

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset

from icrm_lib.generator import model_scorer, token_logprobs
from icrm_lib.language_model.causal import padded
from icrm_lib.language_model.positions import SequenceTooLong
from icrm_lib.language_model.scratch import train_language_model
from tests.architectures import POSITIONS, ROPES, random_rows, tiny_lm


def logprobs_alone(model, row):
    """By `transformers`, with a model that has seen nothing else."""
    with torch.no_grad():
        logits = copy.deepcopy(model)(torch.tensor([row])).logits[0, :-1].double()
    return logits.log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[:, 0].numpy()


@pytest.mark.parametrize("kind", ROPES)
def test_log_probabilities_are_those_of_the_row_alone(kind):
    length = 64 if kind == "dynamic" else POSITIONS
    model = tiny_lm("llama", rope_parameters=ROPES[kind], max_position_embeddings=length)
    rows = random_rows(40, 100, 180, 64, 63, 65)
    want = [logprobs_alone(model, row) for row in rows]
    score = model_scorer(model, 0)
    for order in ([0], range(6), [2, 3], [5, 4, 3, 2, 1, 0], [4]):
        got = score([(rows[i], 1) for i in order])
        for values, i in zip(got, order, strict=True):
            np.testing.assert_allclose(values, want[i], rtol=1e-4, atol=1e-5)
    whole = token_logprobs(model, padded(rows, 0))
    assert whole.shape == (6, 180) and (whole[0, 40:] == 0).all()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_row_beyond_the_models_positions_is_an_error(kind):
    model, rows = tiny_lm(kind), random_rows(9, POSITIONS, POSITIONS + 1)
    assert len(model_scorer(model, 0)([(rows[1], 1)])[0]) == POSITIONS - 1
    message = f"has {POSITIONS + 1} tokens, the model has positions for {POSITIONS}; give max_length={POSITIONS}"
    with pytest.raises(SequenceTooLong, match=f"row 2 {message}"):
        model_scorer(model, 0, tokens_per_batch=1)([(row, 1) for row in rows])
    with pytest.raises(SequenceTooLong, match=f"row 1 {message}"):
        token_logprobs(model, padded(rows[1:], 0))


def test_the_fit_is_refused_rows_that_are_too_long(tmp_path):
    rows = Dataset.from_dict({"input_ids": random_rows(9, POSITIONS + 1), "prompt_length": [1, 1]})
    with pytest.raises(SequenceTooLong, match="1 of 2 rows of the training dataset"):
        train_language_model(tiny_lm("llama"), rows, folder=tmp_path / "fit", pad_token_id=0, max_steps=1)
    assert not (tmp_path / "fit").exists()
