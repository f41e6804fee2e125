"""Splits share no prompt."""

import itertools

import pytest
from datasets import Dataset

from icrm_lib.preferences import split_by_prompt


def test_splits_share_no_prompt_and_depend_on_the_seed_alone():
    rows = [{"prompt_id": f"{i % 40:x}", "row": i} for i in range(200)]
    dataset = Dataset.from_list(rows)
    parts = split_by_prompt(dataset, [0.7, 0.2, 0.1], seed=3)
    ids = [set(part["prompt_id"]) for part in parts]
    assert [len(i) for i in ids] == [28, 8, 4] and len(set.union(*ids)) == 40
    assert sorted(itertools.chain.from_iterable(part["row"] for part in parts)) == list(range(200))
    assert all(part["row"][:] == sorted(part["row"]) for part in parts)
    again = split_by_prompt(Dataset.from_list(rows[::-1]), [0.7, 0.2, 0.1], seed=3)
    assert [set(part["prompt_id"]) for part in again] == ids
    assert [set(p["prompt_id"]) for p in split_by_prompt(dataset, [0.7, 0.2, 0.1], seed=4)] != ids
    for wrong in ([0.5, 0.4], [1.5, -0.5], []):
        with pytest.raises(ValueError, match="positive and add up to 1"):
            split_by_prompt(dataset, wrong, seed=0)
    with pytest.raises(ValueError, match="cannot fill"):
        split_by_prompt(dataset, [0.999, 0.001], seed=0)
