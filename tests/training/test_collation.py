"""The collator: whose token is where, and weights shuffled in an order that stays with the response."""

import numpy as np
import pytest
import torch

from icrm_lib.training.collation import DataCollatorForConsistency


@pytest.fixture
def collate(tokenizer):
    def collate(rows, **options):
        return DataCollatorForConsistency(pad_token_id=tokenizer.pad_token_id, **options)(rows)

    return collate


@pytest.fixture
def weights(collate):
    """The weights of each row's response tokens, chosen rows first."""

    def weights(rows, **options):
        batch = collate(rows, **options)
        return [p[given].tolist() for p, given in zip(batch["token_probs"], batch["response_mask"], strict=True)]

    return weights


def test_collator_marks_the_response_and_its_closing_token(tokenizer, pairs_with_logprobs, collate):
    batch = collate([pairs_with_logprobs[i] for i in range(4)])
    for row in range(8):
        source = pairs_with_logprobs[row % 4]
        side = "chosen" if row < 4 else "rejected"
        start, ids = source["prompt_length"], source[f"{side}_ids"]
        assert batch["input_ids"][row][batch["response_mask"][row]].tolist() == ids[start:]
        assert ids[-1] == tokenizer.eos_token_id
        probs = batch["token_probs"][row]
        want = torch.tensor(source[f"{side}_logprobs"]).exp()
        torch.testing.assert_close(probs[batch["response_mask"][row]], want)
        assert (probs[~batch["response_mask"][row]] == 0).all()


def test_log_probabilities_of_other_data_are_refused(pairs_with_logprobs, collate):
    row = dict(pairs_with_logprobs[0])
    row["chosen_logprobs"] = row["chosen_logprobs"][:-1]
    with pytest.raises(ValueError, match="belong to other data"):
        collate([row, pairs_with_logprobs[1]])


def test_a_response_keeps_its_shuffled_order_in_every_epoch_and_company(pairs_with_logprobs, weights):
    rows = [pairs_with_logprobs[i] for i in range(6)]
    first, again, alone = (weights(given, shuffled=True) for given in (rows, rows, rows[2:3]))
    assert first == again and [first[2], first[8]] == alone
    straight = weights(rows)
    assert all(sorted(a) == sorted(b) for a, b in zip(first, straight, strict=True))
    assert sum(a != b for a, b in zip(first, straight, strict=True)) >= 10  # of 12


def test_responses_of_one_length_are_shuffled_in_different_orders(pairs_with_logprobs, weights, rng):
    row, orders = dict(pairs_with_logprobs[0]), set()
    length = len(row["chosen_logprobs"])
    for _ in range(8):
        row["chosen_logprobs"] = np.sort(-rng.exponential(size=length))
        orders.add(tuple(np.argsort(weights([row], shuffled=True)[0])))
    assert len(orders) == 8
