"""Fast scoring gives the scores of slow scoring: shared prompts, batches, growing prefixes."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, Gemma3TextConfig, LlamaConfig, Qwen3Config

from icrm_lib.reward_model import scoring
from icrm_lib.reward_model.scoring import LEAST_SHARED, PrefixScorer, token_scores

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "num_labels": 1,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "gemma3 with a sliding window": Gemma3TextConfig(
        **SIZES, sliding_window=16, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def model(request):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        model.score.weight.mul_(30)
    return model


def sequences(rng, prompts, each, prompt_length, response=(1, 40)):
    """Rows with shared prompts, their prompt lengths; the rows of a prompt are not neighbours."""
    rows = []
    for _ in range(prompts):
        prompt = rng.integers(1, 120, prompt_length).tolist()
        rows += [(prompt + rng.integers(1, 120, rng.integers(*response)).tolist(), prompt_length) for _ in range(each)]
    order = rng.permutation(len(rows))
    return [rows[i][0] for i in order], [rows[i][1] for i in order]


def one_by_one(model, rows, starts):
    """The slow way: each row alone, no cache."""
    results = []
    for row, start in zip(rows, starts, strict=True):
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([row]), use_cache=False).last_hidden_state
            results.append(model.score(hidden)[0, start:, 0].numpy())
    return results


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_shared_prompts_and_batches_change_no_reward(model, batch_size):
    rng = np.random.default_rng(0)
    rows, starts = sequences(rng, 3, 5, LEAST_SHARED + 11)
    lonely, own = sequences(rng, 4, 1, 7)
    rows, starts = rows + lonely, starts + own
    want = one_by_one(model, rows, starts)
    got = token_scores(model, rows, starts, pad_token_id=0, batch_size=batch_size)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.ptp(np.concatenate(want)) > 0.5


def test_rewards_inside_the_shared_part_are_read_from_it(model):
    rows, lengths = sequences(np.random.default_rng(1), 2, 4, LEAST_SHARED + 5)
    starts = [3, 0, 10, 36, 1, 2, 30, 37]
    want = one_by_one(model, rows, starts)
    got = token_scores(model, rows, starts, pad_token_id=0, shared=lengths)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_identical_rows_and_rows_that_are_all_prompt_work(model):
    row = np.random.default_rng(2).integers(1, 120, LEAST_SHARED + 4).tolist()
    got = token_scores(model, [row, row, row], [len(row) - 1] * 3, pad_token_id=0, shared=[len(row)] * 3)
    np.testing.assert_allclose(got, one_by_one(model, [row] * 3, [len(row) - 1] * 3), atol=1e-5)


def test_a_shared_prompt_is_encoded_once(model, monkeypatch):
    seen = []
    real = scoring.forward
    monkeypatch.setattr(
        scoring, "forward", lambda m, rows, *a, **k: seen.append(sum(map(len, rows))) or real(m, rows, *a, **k)
    )
    rows, starts = sequences(np.random.default_rng(3), 1, 16, 100, response=(10, 11))
    token_scores(model, rows, starts, pad_token_id=0)
    assert sum(seen) == 100 + 16 * 10


def test_nothing_to_score_is_nothing(model):
    assert token_scores(model, [], [], pad_token_id=0) == []


def test_a_growing_prefix_has_the_rewards_of_the_whole(model):
    row = np.random.default_rng(4).integers(1, 120, 60).tolist()
    scorer = PrefixScorer(model)
    for length in (1, 2, 5, 30, 31, 60):
        got = scorer.update(row[:length])
        assert got.shape == (length,)
    np.testing.assert_allclose(got, one_by_one(model, [row], [0])[0], atol=1e-5)


def test_a_changed_end_is_computed_again_and_the_rest_is_not(model, monkeypatch):
    rng = np.random.default_rng(5)
    row = rng.integers(1, 120, 50).tolist()
    other = row[:44] + rng.integers(1, 120, 9).tolist()
    scorer = PrefixScorer(model)
    scorer.update(row)
    for changed in (other, row[:20], [*row[:20], 7], other):
        np.testing.assert_allclose(scorer.update(changed), one_by_one(model, [changed], [0])[0], atol=1e-5)
    before = scorer.rewards.copy()
    monkeypatch.setattr(scoring, "forward", None)  # the same sequence again computes nothing
    np.testing.assert_array_equal(scorer.update(other), before)
    with pytest.raises(ValueError, match="at least one token"):
        scorer.update([])
