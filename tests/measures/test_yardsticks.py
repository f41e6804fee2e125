"""Length and a bag of words: what they tell, that no fold sees its own rows, and the regression itself."""

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.special import expit

from icrm_lib.measures import outcome_yardsticks, pair_yardsticks
from icrm_lib.measures.yardsticks import held_out_logits

WORDS = ["red", "green", "blue", "of", "the", "a", "and", "so"]


def texts(n, seed, extra=""):
    rng = np.random.default_rng(seed)
    return [" ".join([*rng.choice(WORDS, 6), *([extra] if extra else [])]) for _ in range(n)]


def test_a_word_that_decides_is_found_and_length_is_told_apart():
    chosen, rejected = texts(60, 0, "good"), texts(60, 1, "dreadful")
    prompts = np.arange(60) // 2
    table = pair_yardsticks(chosen, rejected, prompts, prompts % 5)
    assert table.loc["bag of words", "accuracy"] == 1
    assert table.loc["shorter", "accuracy"] > 0.5 > table.loc["longer", "accuracy"]
    assert (table["low"] <= table["accuracy"]).all() and (table["accuracy"] <= table["high"]).all()
    again = pair_yardsticks(chosen, chosen[::-1], prompts, prompts % 5)
    assert again.loc["longer", "accuracy"] + again.loc["shorter", "accuracy"] < 1  # equal lengths are right in neither


def test_noise_is_not_learned():
    prompts = np.arange(200)
    table = pair_yardsticks(texts(200, 0), texts(200, 1), prompts, prompts % 5)
    assert table.loc["bag of words", "low"] < 0.5 < table.loc["bag of words", "high"]


def test_a_fold_is_told_from_the_others_alone():
    rng = np.random.default_rng(0)
    features, folds = csr_array(rng.normal(size=(60, 3))), np.arange(60) % 3
    signs = np.where(features[:, [0]].toarray()[:, 0] + rng.normal(size=60) > 0, 1.0, -1.0)
    logits = held_out_logits(features, signs, folds)
    assert np.mean(signs * logits > 0) > 0.6
    turned = np.where(folds == 1, -signs, signs)
    np.testing.assert_allclose(held_out_logits(features, turned, folds)[folds == 1], logits[folds == 1])


def test_the_weights_have_the_lowest_penalised_loss():
    rng = np.random.default_rng(1)
    x, folds = rng.normal(size=(90, 4)), np.arange(90) % 3
    signs, penalty = np.where(rng.random(90) < expit(x[:, 0] + 1), 1.0, -1.0), 0.1
    logits = held_out_logits(csr_array(x), signs, folds, penalties=[penalty])
    held = folds == 0
    design = np.column_stack([x, np.ones(90)])
    weights = np.linalg.lstsq(design[held], logits[held], rcond=None)[0]

    def loss(w):
        return np.mean(np.log1p(np.exp(-signs[~held] * (design[~held] @ w)))) + penalty / 2 * (w[:-1] ** 2).sum()

    slopes = [(loss(weights + step) - loss(weights - step)) / 2e-5 for step in 1e-5 * np.eye(5)]
    np.testing.assert_allclose(slopes, 0, atol=1e-4)


def test_outcomes_are_told_by_majority_length_and_words():
    right = np.arange(80) % 4 > 0
    words = [f"{text} {'indeed' if good else 'maybe'}" for text, good in zip(texts(80, 3), right, strict=True)]
    table = outcome_yardsticks(words, right, np.arange(80), np.arange(80) // 2 % 5)
    assert table.loc["majority", "accuracy"] == 0.75 and table.loc["majority", "auroc"] == 0.5
    assert table.loc["bag of words", "accuracy"] == 1 and table.loc["bag of words", "auroc"] == 1
    assert table.loc["length", "auroc"] < 1
    few = outcome_yardsticks(words, ~right, np.arange(80), np.arange(80) // 2 % 5)
    assert few.loc["majority", "accuracy"] == 0.75


@pytest.mark.parametrize(
    ("folds", "prompts", "message"),
    [
        ([0, 1, 0, 1], [0, 1, 2, 3], "2 folds: one is held out"),
        ([0, 1, 2, 1], [0, 1, 2, 2], "prompt 2 is in folds 2 and 1"),
        ([0, 1, 2], [0, 1, 2, 3], "got 3, 4, 4, 4"),
    ],
)
def test_folds_that_would_deceive(folds, prompts, message):
    with pytest.raises(ValueError, match=message):
        pair_yardsticks(texts(4, 0), texts(4, 1), prompts, folds)


def test_an_empty_text_has_no_length():
    with pytest.raises(ValueError, match="response 1 is an empty text"):
        outcome_yardsticks(["a", "", "b"], [True, False, True], [0, 1, 2], [0, 1, 2])
