"""Pairs as token ids: both sides with one prompt, and what does not fit reported."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import trl
from datasets import Dataset
from rows import assistant, user
from styles import ORDINARY, plain_ids

from icrm_lib.preferences import load_preferences, preference_rows, tokenize_pairs
from icrm_lib.tokenization import tokenize_conversation


@pytest.mark.parametrize("style", ["llama3", "qwen3", "zephyr", "plain"])
def test_trl_tokenises_the_same(style, tokenizers):
    rows = [{"prompt": c[:-1], "chosen": [c[-1]], "rejected": [assistant("no " + c[-1]["content"])]} for c in ORDINARY]
    args = SimpleNamespace(max_length=None, dataset_num_proc=None)
    dataset = Dataset.from_list(rows)
    theirs = trl.RewardTrainer._prepare_dataset(None, dataset, tokenizers[style], args, "train")
    ours, _ = tokenize_pairs(preference_rows(dataset)[0], tokenizers[style], max_length=None)
    assert ours["chosen_ids"][:] == theirs["chosen_ids"][:]
    assert ours["rejected_ids"][:] == theirs["rejected_ids"][:]
    again = trl.RewardTrainer._prepare_dataset(None, ours, tokenizers[style], args, "train")
    assert again["chosen_ids"][:] == ours["chosen_ids"][:]  # taken as already tokenised


def test_pairs_are_tokenised_like_conversations_and_cut_on_both_sides_alike(tokenizers, tmp_path):
    long, brief = "Put it into water. " * 30, [{"role": "system", "content": ""}, user("And?")]
    rows = [
        {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Blue; 12345.", "source": "a"},
        {"prompt": long, "chosen": "Blue, I think.", "rejected": "no", "source": "b"},
        {"prompt": "And then?", "chosen": "wait seven minutes " * 60, "rejected": "no"},
        {"prompt": long, "chosen": "no", "rejected": "Blue, I think."},
        {"prompt": brief, "chosen": "x", "rejected": "y"},
    ]
    rows = [{**row, "margin": i - 1} for i, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset, _ = load_preferences(tmp_path / "a.jsonl")
    tokenizer = tokenizers["llama3"]
    pairs, report = tokenize_pairs(dataset, tokenizer, max_length=60)
    columns = ("chosen_ids", "rejected_ids", "prompt_length", "margin", "prompt_id", "source", "line")
    assert set(pairs.column_names) == set(columns)
    kept = [0, 1, 3, 4]
    assert pairs["line"][:] == [i + 1 for i in kept] and pairs["margin"][:] == [i - 1.0 for i in kept]
    assert pairs["prompt_id"][:] == [dataset["prompt_id"][i] for i in kept]
    assert [(r.file, r.line, r.reason) for r in report.refusals] == [("a.jsonl", 3, "reply too long")]
    assert report.notes == ["2 prompts lost their beginning to fit into 60 tokens"]
    for row, source in zip(pairs, dataset.select(kept), strict=True):
        size, whole = row["prompt_length"], source["prompt"][0]["content"] != long
        assert row["chosen_ids"][:size] == row["rejected_ids"][:size]
        longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        assert longest < 60 if whole else longest == 60
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_ids"]
            alone = tokenize_conversation(tokenizer, [*source["prompt"], assistant(source[side])])
            assert ids[size:] == alone.input_ids[alone.prompt_length :]
            assert ids[0] == tokenizer.bos_token_id
            assert (ids == alone.input_ids) == whole
    with pytest.raises(ValueError, match=r"no usable preference pair:\na.jsonl: 0 kept, 5 refused"):
        tokenize_pairs(dataset, tokenizer, max_length=2)
    with pytest.raises(ValueError, match="no column 'chosen'"):
        tokenize_pairs(dataset.remove_columns("chosen"), tokenizer)


def test_rows_that_a_template_refuses_are_reported(tokenizers):
    system = [{"role": "system", "content": "Be brief."}, user("Name a colour.")]
    rows = {"prompt": [system, system[1:]], "chosen": ["Blue."] * 2, "rejected": ["no"] * 2}
    pairs, report = tokenize_pairs(Dataset.from_dict(rows), tokenizers["gemma"])
    assert len(pairs) == report.kept == 1
    assert report.counts() == {"impossible under the chat template": 1}
    assert "no system role" in report.refusals[0].remedy


REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder shared/data beside the repository")
@pytest.mark.parametrize(("name", "rows", "prompts"), [("pandalm_human", 760, 153), ("dpo_en_demo", 295, None)])
def test_real_files_load_and_tokenise_whole(name, rows, prompts, tokenizers):
    dataset, report = load_preferences(REAL / f"{name}.jsonl")
    assert (report.kept, report.refused) == (rows, 0)
    assert prompts is None or len(set(dataset["prompt_id"])) == prompts
    some = dataset.select(range(60))
    pairs, report = tokenize_pairs(some, tokenizers["qwen2.5"], max_length=None)
    assert report.refused == 0
    for pair, row in zip(pairs, some, strict=True):
        for side in ("chosen", "rejected"):
            ids = pair[f"{side}_ids"]
            assert ids == plain_ids(tokenizers["qwen2.5"], [*row["prompt"], assistant(row[side])])
            assert tokenizers["qwen2.5"].decode(ids[pair["prompt_length"] :]) == row[side] + "<|im_end|>"
