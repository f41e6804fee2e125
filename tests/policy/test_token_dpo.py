"""Token DPO beside TRL's own, and against the equation written out."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rows import language_pairs
from trl import DPOTrainer

from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.policy import TokenDPOTrainer, train_dpo, weighted_loss
from icrm_lib.profiles import RewardModelSettings

SETTINGS = RewardModelSettings(lora_rank=4, lora_alpha=8, batch_size=2, epochs=1, learning_rate=1e-2)


@pytest.fixture(scope="module")
def texts(language):
    return language_pairs(language, 6)


@pytest.fixture(scope="module")
def weighted(texts, tokenizer):
    """The same pairs with a weight a token, not all positive."""
    rng = np.random.default_rng(1)

    def weights(row):
        counts = {side: len(tokenizer(row[side]).input_ids) + 1 for side in ("chosen", "rejected")}
        return {f"{side}_weights": rng.normal(1, 1, count).tolist() for side, count in counts.items()}

    return texts.map(weights)


def trained(base_model, tokenizer, pairs, folder, trainer, **config):
    """A trainer after three steps, and its losses."""
    options = {"folder": folder, "seed": 0, "beta": 0.3, "trainer": trainer, "logging_steps": 1}
    done = train_dpo(base_model, tokenizer, pairs, SETTINGS, **options, **config)
    return done, [entry["loss"] for entry in done.state.log_history if "loss" in entry]


def gradients(trainer):
    """Loss and gradients of the adapter on all pairs."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator([trainer.train_dataset[i] for i in range(6)]))
    loss.backward()
    return loss.item(), [value.grad for value in trainer.model.parameters() if value.requires_grad]


def given(tokens):
    """The loss, and a record of what it was given."""
    met.append(tokens)
    return weighted_loss(tokens)


met = []


@pytest.fixture(scope="module")
def theirs(base_model, tokenizer, texts, tmp_path_factory):
    return trained(base_model, tokenizer, texts, tmp_path_factory.mktemp("trl"), DPOTrainer)


@pytest.mark.parametrize("vocabulary", [False, True])
def test_weights_of_one_are_trls_dpo(base_model, tokenizer, texts, tmp_path, theirs, vocabulary):
    trainer = partial(TokenDPOTrainer, vocabulary=vocabulary)
    done, losses = trained(base_model, tokenizer, texts, tmp_path, trainer)
    assert losses == pytest.approx(theirs[1], abs=1e-5) and abs(losses[-1] - losses[0]) > 1e-3
    done.model.load_state_dict(theirs[0].model.state_dict())
    (loss, ours), (other, trls) = (gradients(one) for one in (done, theirs[0]))
    assert loss == pytest.approx(other, abs=1e-5)  # sums of float32 log-probabilities, subtracted in another order
    for a, b in zip(ours, trls, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert max(value.abs().max() for value in trls) > 1e-2
    for ours, trls in zip(done.state.log_history, theirs[0].state.log_history, strict=True):
        for name in set(ours) & {"rewards/chosen", "rewards/margins", "rewards/accuracies", "logps/rejected"}:
            assert ours[name] == pytest.approx(trls[name], abs=1e-3)


def test_the_loss_is_the_equation_on_the_weights_of_the_data(base_model, tokenizer, weighted, tmp_path):
    met.clear()
    trainer = partial(TokenDPOTrainer, pair_loss=given, vocabulary=True)
    done, losses = trained(base_model, tokenizer, weighted, tmp_path, trainer)
    assert losses[0] == pytest.approx(np.log(2), abs=1e-6)  # policy and reference are one
    batch = done.data_collator([done.train_dataset[i] for i in range(6)])
    met.clear()
    loss = done.compute_loss(done.model, batch).item()
    (tokens,) = met
    reference, total = load_causal_lm(base_model, device="cpu"), 0.0
    policy = done.model
    for i, row in enumerate(done.train_dataset):
        rewards = {}
        for side, number in (("chosen", i), ("rejected", 6 + i)):
            ids = torch.tensor([row["prompt_ids"] + row[f"{side}_ids"]])
            start, weights = len(row["prompt_ids"]), torch.tensor(weighted[i][f"{side}_weights"])
            with torch.no_grad():
                rows = [m(input_ids=ids).logits[0, start - 1 : -1].log_softmax(-1) for m in (policy, reference)]
            ours, base = (logprobs.gather(1, ids[0, start:, None])[:, 0] for logprobs in rows)
            rewards[side] = 0.3 * (weights * (ours - base)).sum()
            here = tokens.mask[number]
            torch.testing.assert_close(tokens.policy_rows[number][here], rows[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(tokens.reference_rows[number][here], rows[1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(tokens.weights[number][here], weights)
        total -= F.logsigmoid(rewards["chosen"] - rewards["rejected"]).item() / 6
    assert loss == pytest.approx(total, abs=1e-4) and abs(loss - np.log(2)) > 1e-3


def test_padding_and_prompts_play_no_part(base_model, tokenizer, weighted, tmp_path):
    trainer = partial(TokenDPOTrainer, pair_loss=given)
    done, _ = trained(base_model, tokenizer, weighted, tmp_path, trainer, max_steps=1)
    short, long = sorted((done.train_dataset[i] for i in range(6)), key=lambda row: len(row["chosen_ids"]))[::5]
    losses = []
    for rows in ([short], [short, long]):
        met.clear()
        done.compute_loss(done.model, done.data_collator(rows))
        (tokens,) = met
        assert all((values[~tokens.mask] == 0).all() for values in (tokens.policy, tokens.reference, tokens.weights))
        losses.append(weighted_loss(tokens)[0].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_wrong_numbers_of_weights_and_other_losses_are_refused(base_model, tokenizer, weighted, tmp_path):
    wrong = weighted.map(lambda row: {"rejected_weights": row["rejected_weights"][:-1]})
    with pytest.raises(ValueError, match=r"rejected_weights has \d+ numbers for a response of \d+ tokens"):
        trained(base_model, tokenizer, wrong, tmp_path, TokenDPOTrainer)
    with pytest.raises(ValueError, match=r"loss_type is \['hinge'\], which token DPO does not compute"):
        trained(base_model, tokenizer, weighted, tmp_path, TokenDPOTrainer, loss_type="hinge")
