"""Next tokens as leaves of a tree: each has the reward that it has behind its prefix alone."""

import pytest
import torch

from icrm_lib.language_model.attention import MASKED
from icrm_lib.reward_model.head import capture_head
from icrm_lib.training.collation import DataCollatorForConsistency
from icrm_lib.training.tree import Tree, refuse_leaves, sibling_rewards
from tests.training.test_packing import REFUSED, rows, tiny_scorer


def examples():
    found = [{**row, "margin": 0.0} for row in rows()]
    found[1]["rejected_ids"] = [299, *found[1]["rejected_ids"][1:]]  # no prompt of the chosen one
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", sorted(MASKED))
def test_a_leaf_has_the_reward_that_it_has_behind_its_prefix_alone(kind, attention):
    model, count = tiny_scorer(kind, attention).eval(), 2
    refuse_leaves(model.config, "expected")
    batch = DataCollatorForConsistency(pad_token_id=0, siblings=count)(examples())
    with torch.no_grad():
        got = sibling_rewards(model, Tree(*(batch[name] for name in Tree._fields)), attention)
    assert got.shape == batch["sibling_probs"].shape == (*batch["input_ids"].shape, count)
    prefixes, want = [], []
    for side, start in (("chosen", 0), ("rejected", 3)):
        for n, row in enumerate(examples(), start):
            ids, length = row[f"{side}_ids"], len(row[f"{side}_ids"])
            for t in range(row["prompt_length"], length - 1):
                asked = row[f"{side}_sibling_ids"][t + 1 - row["prompt_length"]][:count]
                prefixes += [(n, t, k, ids[: t + 1] + [v]) for k, v in enumerate(asked)]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for *_, ids in prefixes], batch_first=True)
    with torch.no_grad(), capture_head(model) as head:
        model(input_ids=ids, attention_mask=ids > 0)
    want = head.rewards[range(len(prefixes)), [len(ids) - 1 for *_, ids in prefixes]]
    n, t, k, _ = zip(*prefixes, strict=True)
    torch.testing.assert_close(got[list(n), list(t), list(k)], want, rtol=1e-4, atol=1e-4)
    assert want.std() > 1e-2


def test_probabilities_stand_where_the_token_before_them_does():
    batch = DataCollatorForConsistency(pad_token_id=0, siblings=3)(examples())
    for side, start in (("chosen", 0), ("rejected", 3)):
        for n, row in enumerate(examples(), start):
            first = row["prompt_length"] - 1  # the first entry was asked for behind the prompt
            probs = torch.tensor(row[f"{side}_sibling_logprobs"]).exp()[:, :3]
            torch.testing.assert_close(batch["sibling_probs"][n, first : first + len(probs)], probs)
            assert (batch["sibling_probs"][n, first + len(probs) :] == 0).all()
            assert (batch["sibling_probs"][n, :first] == 0).all()


def test_lists_of_other_data_are_refused():
    wrong = examples()
    wrong[0]["chosen_sibling_ids"] = wrong[0]["chosen_sibling_ids"][1:]
    with pytest.raises(ValueError, match="29 lists of next tokens"):
        DataCollatorForConsistency(pad_token_id=0, siblings=3)(wrong)


@pytest.mark.parametrize("kind", [*REFUSED, "llama"])
def test_what_follows_no_mask_is_refused_by_name(kind):
    more, reason = REFUSED.get(kind, ({}, "takes block masks"))
    config = tiny_scorer(kind, "flex_attention" if kind == "llama" else "eager", **more).config
    with pytest.raises(ValueError, match=f"form='expected'.*{reason}"):
        refuse_leaves(config, "expected")
