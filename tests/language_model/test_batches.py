"""Batches of like length hold what they may and no more; padding is masked on either side."""

import torch

from icrm_lib.language_model.causal import batches_of, padded


def test_batches_hold_at_most_so_many_tokens_and_rows():
    lengths = [10, 20, 30, 9, 60, 8]
    batches = list(batches_of(range(6), lengths, tokens=50))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 50 for b in batches)
    assert max(len(b) for b in batches_of(range(6), lengths, tokens=50, rows=2)) == 2


def test_rows_are_padded_and_masked_on_either_side():
    right, left = (padded([[5, 6, 7], [8]], 9, side=side) for side in ("right", "left"))
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right["input_ids"].dtype == right["attention_mask"].dtype == torch.long
    assert padded([[5], [6, 7]], 0, seen=2)["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
