"""Fingerprints follow content and nothing else. (Checkpoints themselves: `tests/lab/test_damage.py`.)"""

import shutil

from datasets import Dataset, concatenate_datasets

from icrm_lib.language_model.checkpoints import data_fingerprint, model_fingerprint


def test_fingerprints_follow_content(base_model, pairs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(base_model, copy)
    assert model_fingerprint(base_model) == model_fingerprint(copy)
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert model_fingerprint(base_model) != model_fingerprint(copy)
    assert model_fingerprint("owner/name") == "hub:owner/name"
    shuffled = pairs.select(range(len(pairs) - 1, -1, -1))
    assert data_fingerprint(pairs) != data_fingerprint(shuffled)
    assert data_fingerprint(pairs) == data_fingerprint(shuffled.select(range(len(pairs) - 1, -1, -1)))


def test_a_fingerprint_depends_on_the_values_alone(pairs):
    """Neither types, chunks nor indices count; where a list ends and what its column is called do."""
    rows = {name: pairs[name][:] for name in ("chosen_ids", "rejected_ids", "prompt_length")}
    want = data_fingerprint(pairs)
    assert data_fingerprint(Dataset.from_dict(rows)) == want
    half = len(pairs) // 2
    chunks = [pairs.select(range(half)), pairs.select(range(half, len(pairs)))]
    assert data_fingerprint(concatenate_datasets(chunks)) == want
    twice = pairs.select(range(len(pairs) - 1, -1, -1)).select(range(len(pairs) - 1, -1, -1))
    assert data_fingerprint(twice) == want != data_fingerprint(chunks[0])
    moved = rows | {"chosen_ids": [rows["chosen_ids"][0] + rows["chosen_ids"][1][:1], rows["chosen_ids"][1][1:]]}
    moved["chosen_ids"] += rows["chosen_ids"][2:]
    swapped = rows | {"chosen_ids": rows["rejected_ids"], "rejected_ids": rows["chosen_ids"]}
    longer = rows | {"prompt_length": [rows["prompt_length"][0] + 1, *rows["prompt_length"][1:]]}
    others = [data_fingerprint(Dataset.from_dict(other)) for other in (moved, swapped, longer)]
    assert len({want, *others}) == 4
