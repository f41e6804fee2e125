"""Guided decoding: what is added at each step, against every row computed alone."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig

from icrm_lib.decoding import BestChildren, Guide, SecondModel, Step, TreeScorer, scored_by_rows
from icrm_lib.language_model.causal import load_causal_lm, padded
from icrm_lib.language_model.sampling import SamplingSettings, generate, generation_config, prompt_ids
from icrm_lib.language_model.scratch import small_llama
from icrm_lib.reward_model.scoring import token_scores

STEPS = 5


@pytest.fixture(scope="module")
def policy(base_model):
    return load_causal_lm(base_model, device="cpu").eval()


@pytest.fixture(scope="module")
def other(tokenizer):
    return small_llama(tokenizer, hidden_size=16, layers=2, heads=2, max_length=256, seed=7).eval()


@pytest.fixture(scope="module")
def reward_model(policy):
    torch.manual_seed(3)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=policy.config.vocab_size, num_labels=1, pad_token_id=0, **size)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        model.score.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def prompts(language, tokenizer):
    """Rows of unlike length, padded on the left."""
    texts = sorted(language.prompts, key=len)[::90]
    rows = [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in texts]
    assert len({len(row) for row in rows}) > 1
    batch = padded(rows, tokenizer.pad_token_id, side="left")
    return batch["input_ids"], batch["attention_mask"]


def write(policy, tokenizer, prompts, guide, **options):
    torch.manual_seed(0)
    config = generation_config(tokenizer, STEPS, SamplingSettings(temperature=0.7, top_p=0.9))
    config.update(output_scores=True, **options)
    guides = [guide] if guide else []
    return generate(policy, config, *prompts, logits_processor=guides)


class Recorded:
    """A vector that also keeps the steps and what it gave."""

    def __init__(self, vector):
        self.vector, self.met = vector, []

    def __call__(self, step):
        self.met.append((step, self.vector(step)))
        return self.met[-1][1]


def rows_of(step):
    return [ids[kept].tolist() for ids, kept in zip(step.ids, step.mask, strict=True)]


@pytest.mark.parametrize("kind", ["second model", "children"])
def test_weight_zero_changes_nothing_to_the_bit(policy, other, reward_model, tokenizer, prompts, kind):
    vector = SecondModel(other) if kind == "second model" else BestChildren(TreeScorer(reward_model), 3)
    plain = write(policy, tokenizer, prompts, None)
    guided = write(policy, tokenizer, prompts, Guide(vector, 0.0))
    assert torch.equal(plain.sequences, guided.sequences) and vector.tokens == 0
    assert all(torch.equal(a, b) for a, b in zip(plain.scores, guided.scores, strict=True))


def test_a_second_model_adds_its_log_probabilities(policy, other, tokenizer, prompts):
    second = SecondModel(other)
    vector = Recorded(second)
    written = write(policy, tokenizer, prompts, Guide(vector, 2.0, prompt_mask=prompts[1]))
    for step, added in vector.met:
        with torch.no_grad():
            for row, values in zip(rows_of(step), added, strict=True):
                want = other(torch.tensor([row])).logits[0, -1].log_softmax(-1)
                torch.testing.assert_close(values, want, atol=1e-5, rtol=1e-5)
    plain = write(policy, tokenizer, prompts, None)
    assert not torch.equal(plain.sequences, written.sequences)
    # Every token but the last one written is read once.
    assert second.tokens == int(prompts[1].sum()) + len(prompts[0]) * (STEPS - 1)


def test_the_next_tokens_have_the_rewards_of_rows_of_their_own(policy, reward_model, tokenizer, prompts):
    best = BestChildren(TreeScorer(reward_model), 3)
    vector = Recorded(best)
    written = write(policy, tokenizer, prompts, Guide(vector, 1.5, prompt_mask=prompts[1]))
    for number, (step, added) in enumerate(vector.met):
        slow = BestChildren(scored_by_rows(lambda *asked: token_scores(reward_model, *asked, pad_token_id=0)), 3)
        torch.testing.assert_close(added, slow(step), atol=2e-5, rtol=1e-4, equal_nan=True)
        for i, row in enumerate(rows_of(step)):  # by hand: the three likeliest, each at the end of a row alone
            kept = torch.nonzero(~added[i].isnan()).flatten().tolist()
            assert kept == sorted(step.logits[i].topk(3).indices.tolist())
            child = written.sequences[i, step.ids.shape[1]].item()
            assert child in kept
            with torch.no_grad():
                reward = reward_model(torch.tensor([[*row, child]])).logits.item()
            assert added[i, child].item() == pytest.approx(reward, abs=2e-5)
        assert slow.tokens == 3 * (int(step.mask.sum()) + len(prompts[0])) and number < STEPS
    assert added[~added.isnan()].std() > 0.1


def test_what_is_scored_is_counted(policy, reward_model, tokenizer, prompts):
    best = BestChildren(TreeScorer(reward_model), 3)
    write(policy, tokenizer, prompts, Guide(best, 1.0, prompt_mask=prompts[1]))
    rows, steps = len(prompts[0]), STEPS
    assert best.children == 3 * rows * steps
    assert best.tokens == int(prompts[1].sum()) + rows * (steps - 1) + best.children


def test_ended_rows_are_not_counted_and_others_go_on(policy, reward_model, prompts):
    ids, mask = prompts
    best = BestChildren(TreeScorer(reward_model), 2)
    guide = Guide(best, 1.0, prompt_mask=mask, stops=[2])
    logits = torch.randn(len(ids), policy.config.vocab_size, generator=torch.Generator().manual_seed(0))
    guide(ids, logits)
    first = best.children
    tokens = torch.full((len(ids), 1), 9)
    tokens[0] = 2
    guide(torch.cat([ids, tokens], 1), logits)
    assert best.children - first == 2 * (len(ids) - 1)


def test_rows_that_do_not_continue_are_computed_anew(reward_model, rng):
    scorer = TreeScorer(reward_model)
    slow = scored_by_rows(lambda *asked: token_scores(reward_model, *asked, pad_token_id=0))
    for length in (6, 7, 7, 5):
        ids = torch.tensor(rng.integers(5, 50, (2, length)))
        step = Step(ids, torch.ones_like(ids, dtype=torch.bool), torch.randn(2, 60), torch.ones(2, dtype=torch.bool))
        children = torch.tensor(rng.integers(5, 50, (2, 3)))
        torch.testing.assert_close(scorer(step, children)[0], slow(step, children)[0], atol=2e-5, rtol=1e-4)


def test_vocabularies_and_numbers_are_checked(policy, reward_model, tokenizer, prompts):
    small = small_llama(tokenizer, hidden_size=16, layers=1, heads=2, max_length=256, seed=0)
    small.resize_token_embeddings(policy.config.vocab_size - 3)
    with pytest.raises(ValueError, match="take two of one vocabulary"):
        write(policy, tokenizer, prompts, Guide(SecondModel(small.eval()), 1.0, prompt_mask=prompts[1]))
    with pytest.raises(ValueError, match="k is 0"):
        BestChildren(TreeScorer(reward_model), 0)
    unmasked = AutoModelForSequenceClassification.from_config(reward_model.config, attn_implementation="sdpa")
    unmasked.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    with pytest.raises(ValueError, match="use scored_by_rows"):
        TreeScorer(unmasked)


def test_token_scorers_of_numpy_are_taken():
    score = scored_by_rows(lambda rows, starts: [np.array([len(row) + row[-1]]) for row in rows])
    ids = torch.tensor([[0, 4, 4], [4, 4, 4]])
    step = Step(ids, ids != 0, torch.zeros(2, 9), torch.tensor([True, False]))
    rewards, run = score(step, torch.tensor([[1, 2], [3, 5]]))
    assert rewards.tolist() == [[4, 5], [7, 9]] and run == 6
