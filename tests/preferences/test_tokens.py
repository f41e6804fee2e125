"""Pairs as token ids: both sides with one prompt, and what does not fit reported."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import trl
from datasets import Dataset
from rows import assistant, user
from styles import ORDINARY, plain_ids

from icrm_lib.preferences import load_preferences, preference_rows, tokenize_pairs, tokens
from icrm_lib.preferences.report import Cut
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
    rows = [{**row, "margin": i + 1} for i, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset, _ = load_preferences(tmp_path / "a.jsonl")
    tokenizer = tokenizers["llama3"]
    pairs, report = tokenize_pairs(dataset, tokenizer, max_length=60)
    columns = ("chosen_ids", "rejected_ids", "prompt_length", "margin", "prompt_id", "source", "line")
    assert set(pairs.column_names) == set(columns)
    kept = [0, 1, 3, 4]
    assert pairs["line"][:] == [i + 1 for i in kept] and pairs["margin"][:] == [i + 1.0 for i in kept]
    assert pairs["prompt_id"][:] == [dataset["prompt_id"][i] for i in kept]
    assert [(r.file, r.line, r.reason) for r in report.refusals] == [("a.jsonl", 3, "reply too long")]
    assert report.cut == Cut(60, prompts=2, questions=2, systems=0) and report.notes == []
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


def some_pairs(lengths):
    """Pairs with replies of so many words."""
    rows = [{"prompt": f"Question {i}?", "chosen": "wait " * n, "rejected": "no"} for i, n in enumerate(lengths)]
    return preference_rows(Dataset.from_list(rows))


def test_one_report_tells_the_whole_way(tokenizers, tmp_path):
    asked = [{"system": "Be brief. " * 20, "question": "Why?"}, {"system": "", "question": "Why? " * 60}]
    rows = [
        {
            "prompt": [{"role": "system", "content": row["system"]}, user(row["question"])],
            "chosen": "a",
            "rejected": "b",
        }
        for row in asked
    ]
    rows += [{"prompt": "q", "chosen": "a " * 99, "rejected": "b"}, {"prompt": "q", "chosen": "a"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset, read = load_preferences(tmp_path / "a.jsonl")
    assert (read.kept, read.refused, read.cut) == (3, 1, None)
    pairs, report = tokenize_pairs(dataset, tokenizers["qwen2.5"], max_length=64, report=read)
    assert (len(pairs), report.kept, report.cut) == (2, 2, Cut(64, prompts=2, questions=1, systems=1))
    assert [(r.line, r.reason) for r in report.refusals] == [(3, "reply too long"), (4, "missing key 'rejected'")]
    assert str(report).startswith("WARNING: 2 of 4 (50%) rows are refused")
    assert "WARNING: 1 of 2 (50%) prompts lost text of their question to fit into 64 tokens" in str(report)


@pytest.mark.parametrize(("most", "places", "kept", "unread"), [(None, [0, 2, 3, 5], 4, 0), (1, [0], 1, 4)])
def test_no_more_is_tokenised_than_the_blocks_it_takes(most, places, kept, unread, tokenizers, monkeypatch):
    monkeypatch.setattr(tokens, "BLOCK", 2)
    dataset, _ = some_pairs([1, 99, 1, 1, 99, 1])
    pairs, rows, report = tokens.tokenize_fitting(dataset, tokenizers["qwen2.5"], max_length=64, most=most)
    assert rows == places and (report.kept, report.unread) == (kept, unread)
    assert pairs["line"][:] == [place + 1 for place in places]
    assert report.kept + report.refused + report.unread == 6
    assert pairs[:] == tokenize_pairs(dataset, tokenizers["qwen2.5"], max_length=64)[0].select(range(len(places)))[:]


@pytest.mark.parametrize("most", [None, 0, 3])
@pytest.mark.parametrize("lengths", [[], [99, 99]])
def test_it_may_be_that_no_pair_fits(lengths, most, tokenizers):
    dataset = some_pairs([99, 99])[0].select(range(len(lengths)))
    pairs, rows, report = tokens.tokenize_fitting(dataset, tokenizers["qwen2.5"], max_length=64, most=most)
    assert (len(pairs), rows, report.kept, report.refused) == (0, [], 0, len(lengths))
    want = ["chosen_ids", "rejected_ids", "prompt_length", "prompt_id", "line"]
    assert sorted(pairs.column_names) == sorted(want)


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
