"""Splits and folds share no prompt."""

import itertools

import pytest
from datasets import Dataset
from rows import good, write

from icrm_lib.preferences import hold_out, load_preferences, prompt_folds, split_by_prompt

FOLDS = [0, 2, 1, 3, 0, 1, 2, 0, 2, 4, 2, 1, 1, 3, 1, 3, 4, 1, 3, 3]  # of "Question 0?", "Question 1?", ...


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


def test_the_fold_of_a_prompt_depends_on_its_text_alone(tmp_path):
    rows = [good(prompt=f"Question {i % 20}?", chosen=f"Answer {i}.") for i in range(60)]
    dataset, _ = load_preferences(write(tmp_path / "a.jsonl", *rows))
    folds = prompt_folds(dataset)
    # Written down once: another machine, another version of a library, other rows beside them must give the same.
    assert folds[:20].tolist() == FOLDS
    assert folds.tolist() == FOLDS * 3
    alone, _ = load_preferences(write(tmp_path / "b.jsonl", good(prompt=" Question  7?\n")))
    assert prompt_folds(alone).tolist() == [FOLDS[7]]


def test_a_fold_is_held_out_of_the_others():
    dataset = Dataset.from_list([{"prompt_id": f"{i % 40:x}", "row": i} for i in range(200)])
    held = [hold_out(dataset, fold) for fold in range(5)]
    for rest, test in held:
        assert not set(rest["prompt_id"][:]) & set(test["prompt_id"][:]) and len(rest) + len(test) == 200
        assert rest["row"][:] == sorted(rest["row"][:])
    assert sorted(row for _, test in held for row in test["row"][:]) == list(range(200))
    with pytest.raises(ValueError, match="fold 5 of 5"):
        hold_out(dataset, 5)
    with pytest.raises(ValueError, match="at least 2 are needed"):
        prompt_folds(dataset, 1)
    with pytest.raises(ValueError, match="holds 0 of 200 rows"):
        hold_out(dataset, 60, folds=61)
