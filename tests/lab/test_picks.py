"""What picks are worth: on candidates whose rewards and gold scores are known, and on sampled ones."""

import numpy as np
import pandas as pd
import pytest

from icrm_lib.lab.picks import Pool, measure_picks, sample_pool
from icrm_lib.lab.workspace import Workspace


@pytest.fixture
def pool():
    """Four prompts, 64 candidates; the gold score is decided by the first token, the length by the candidate."""
    rng = np.random.default_rng(0)
    gold, lengths = rng.integers(-3, 4, (4, 64)).astype(float), rng.integers(80, 100, (4, 64))
    rows = [[9, *[int(g) + 3] * n] for g, n in zip(gold.ravel(), lengths.ravel(), strict=True)]
    return Pool(rows, [1] * len(rows), gold, lengths, np.array([True, True, False, False]))


def from_the_first_token(rows, starts):
    return [np.array(row[start:], dtype=float) for row, start in zip(rows, starts, strict=True)]


def test_a_perfect_reward_model_picks_the_best_and_loses_nothing_by_stopping_early(pool):
    found = measure_picks(pool, {"place": from_the_first_token})
    best = pool.gold[2:].max(1)
    np.testing.assert_allclose(found["gold"]["64"], best)
    np.testing.assert_allclose(found["gold"]["1"], pool.gold[2:].mean(1), atol=1e-4)
    assert [len(found["curve"]), found["curve"][-1]] == [64, best.mean()] and np.all(np.diff(found["curve"]) > -1e-9)
    assert [row[0] for row in found["picks"]] == best.tolist()
    half = found["early"]["50%"]
    assert half["share"] < 0.52 and half["loss"] == [0, 0]
    assert np.all(np.array(half["same_tokens"]) <= np.array(half["full"]) + 1e-9)
    assert sum(found["pick_lengths"]) == pytest.approx(1, abs=1e-3)


def test_a_model_that_knows_only_at_the_end_loses_by_stopping_early(pool):
    def at_the_end(rows, starts):
        noise = np.random.default_rng(1)
        values = from_the_first_token(rows, starts)
        return [np.append(noise.normal(size=len(v) - 1), v[-1]) for v in values]

    found = measure_picks(pool, {"place": at_the_end, "closing": from_the_first_token})
    assert found["gold"]["64"] == pool.gold[2:].max(1).tolist()
    assert np.mean(found["early"]["40%"]["loss"]) > 0.2
    assert found["early_closing"]["40%"]["loss"] == [0, 0]  # by a readout that knows earlier
    assert np.mean(found["early"]["40%"]["gold"]) < np.mean(found["early"]["40%"]["full"])


def test_a_pool_is_sampled_once_and_knows_its_gold_scores(tmp_path, monkeypatch, base_model, tokenizer, language):
    workspace = Workspace("smoke", base_model=base_model, folder=tmp_path)
    monkeypatch.setattr("icrm_lib.lab.workspace.sample", drawn_from(language))
    pool = sample_pool(workspace, candidates=6, limit=2)
    assert pool.gold.shape == pool.lengths.shape == (4, 5) and pool.validation.tolist() == [True] * 2 + [False] * 2
    texts = [tokenizer.decode(row[start:-1]) for row, start in zip(pool.rows, pool.starts, strict=True)]
    talk = [{"role": "user", "content": language.split_prompts()[1][0]}, {"role": "assistant", "content": texts[0]}]
    assert pool.gold[0, 0] == language.gold_score(talk)
    assert [
        len(row) - start for row, start in zip(pool.rows, pool.starts, strict=True)
    ] == pool.lengths.ravel().tolist()


def drawn_from(language):
    """A stand-in for sampling from an untrained policy, whose responses would have no gold score."""

    def draw(model, tokenizer, prompts, settings, path):
        rng = np.random.default_rng(0)
        rows = []
        for i, prompt in enumerate(prompts):
            for j, text in enumerate(language.sample_responses(prompt[0]["content"], settings.n, rng)):
                finished = (i, j) != (1, 3)  # one was cut by the limit
                rows.append({"prompt": i, "index": j, "response": text, "tokens": 9, "finished": finished})
        return pd.DataFrame(rows)

    return draw


def test_a_prompt_whose_responses_never_end_is_named(tmp_path, monkeypatch, base_model):
    workspace = Workspace("smoke", base_model=base_model, folder=tmp_path)
    monkeypatch.setattr(
        "icrm_lib.lab.workspace.sample",
        lambda *_: pd.DataFrame({"prompt": [0], "index": 0, "response": "a", "finished": True}),
    )
    with pytest.raises(ValueError, match="no response to .* ended within 128 tokens"):
        sample_pool(workspace, candidates=1, limit=1)
