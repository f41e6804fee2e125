"""First what fits, then the sizes of the splits; one report a source that tells the whole way."""

import json
import logging

import pytest
from published import UNIFIED, rated, write_parquet
from tiny import TEXTS, micro, save_tiny

from icrm_lib.lab import data
from icrm_lib.lab.data import SPLITS
from icrm_lib.lab.workspace import Workspace
from icrm_lib.preferences import tokens

LONG = " ".join(str(i * 7919 % 10007) for i in range(300))
SIZES = {"train_pairs": 24, "validation_pairs": 4, "test_pairs": 8, "max_length": 128}


def write_rows(path, prompts, long):
    """A pair a prompt; `long` says by its number whether its reply is too long."""
    rows = [
        {"prompt": f"{TEXTS[0]} No. {i}", "chosen": TEXTS[1] + LONG * long(i), "rejected": TEXTS[2]}
        for i in range(prompts)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny("llama", folder)
    return folder


@pytest.fixture
def workspace(model, tmp_path):
    def make(file, base_model=model, **sections):
        profile = micro(**sections | {"data": SIZES | sections.get("data", {})})
        return Workspace(profile, preferences=file, base_model=base_model, folder=tmp_path / "made")

    return make


def test_the_sizes_count_what_fits(workspace, tmp_path, caplog):
    ws = workspace(write_rows(tmp_path / "half.jsonl", 100, lambda i: i % 2))
    sizes = {"train": 24, "validation": 4, "test": 8}
    assert {split: len(rows) for split, rows in ws.tokenized.items()} == sizes
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == "half.jsonl: 50 of 100 (50%) rows are refused, 50 of them for: reply too long"
    (report,) = ws.reports
    assert (report.kept, report.refused, report.unread, report.used) == (50, 50, 0, sizes)
    lines = str(report).splitlines()
    assert lines[:2] == [
        "WARNING: 50 of 100 (50%) rows are refused, 50 of them for: reply too long",
        "half.jsonl: 50 kept, 50 refused",
    ]
    assert "  used: 24 train, 4 validation, 8 test, 14 more would fit" in lines
    for split in SPLITS:
        assert ws.pairs[split]["line"][:] == ws.tokenized[split]["line"][:]
        assert all(line % 2 for line in ws.pairs[split]["line"])
    everything = dict.fromkeys(("train_pairs", "validation_pairs", "test_pairs"), 99)
    sizes = {split: len(rows) for split, rows in workspace(tmp_path / "half.jsonl", data=everything).pairs.items()}
    assert sizes == {"train": 35, "validation": 5, "test": 10}


def test_of_a_large_file_no_more_is_looked_at_than_it_takes(workspace, monkeypatch, tmp_path):
    for module in (tokens, data):
        monkeypatch.setattr(module, "BLOCK", 40)
    ws = workspace(write_rows(tmp_path / "half.jsonl", 300, lambda i: i % 2))
    (report,) = ws.reports
    assert report.used == {"train": 24, "validation": 4, "test": 8}
    assert report.kept + report.refused + report.unread == 300 and 0 < report.unread < 300 - 36
    assert f"{report.unread} not looked at" in str(report)


def test_a_tokenizer_from_scratch_learns_from_the_training_split_before_anything_is_filtered(workspace, tmp_path):
    ws = workspace(write_rows(tmp_path / "half.jsonl", 100, lambda i: i % 2), "scratch")
    assert len(ws.tokenized["train"]) == 24 and any(LONG in text for text in ws.training_texts())
    held_out = {text for split in ("validation", "test") for text in ws.pairs[split]["chosen"]}
    prompts = {talk[0]["content"] for split in ("validation", "test") for talk in ws.pairs[split]["prompt"]}
    assert prompts and held_out and not prompts & set(ws.training_texts())
    (report,) = ws.reports
    assert (report.kept, report.refused) == (50, 50)
    assert report.used == {split: len(rows) for split, rows in ws.tokenized.items()}


def test_a_split_without_rows_stops_only_who_asks_for_it(workspace, tmp_path):
    ws = workspace(write_rows(tmp_path / "some.jsonl", 40, lambda i: i > 2))
    assert {split: len(rows) for split, rows in ws.pairs.items()} == {"train": 2, "validation": 0, "test": 1}
    assert ws.reward_model("bt").score(ws.conversations("test")["chosen"]).shape == (1,)
    said = r"the validation split has no usable preference pair; raise data\.max_length(.|\n)*3 kept, 37 refused"
    for ask in (lambda: ws.tokenized["validation"], lambda: ws.conversations("validation")):
        with pytest.raises(ValueError, match=said):
            ask()
    lost = workspace(write_rows(tmp_path / "none.jsonl", 40, lambda i: True))
    with pytest.raises(ValueError, match="the train split has no usable(.|\n)*none.jsonl: 0 kept, 40 refused"):
        lost.reward_model("bt")


def test_too_few_prompts_are_refused_with_the_report(workspace, tmp_path):
    file = write_rows(tmp_path / "few.jsonl", 9, lambda i: False)
    file.write_text(file.read_text() + '\n{"prompt": "a", "chosen": "b"}')
    with pytest.raises(ValueError, match=r"9 distinct prompts.*add rows with other prompts(.|\n)*9 kept, 1 refused"):
        _ = workspace(file).pairs


def test_a_recipe_looks_at_no_more_rows_than_it_takes(model, monkeypatch, tmp_path):
    monkeypatch.setattr(tokens, "BLOCK", 10)
    for split, count in (("train", 60), ("val", 30)):
        rows = [rated(f"{TEXTS[0]} {split} {i}", 1, 0) for i in range(count)]
        for i in range(0, count, 3 if split == "train" else 1):
            rows[i]["conv_A"][1]["content"] += LONG
        write_parquet(tmp_path / "published" / UNIFIED / "all" / f"{split}-0.parquet", rows)
    source = {"preferences": "unified-feedback", "files": str(tmp_path / "published"), "stride": 1}
    first, again = (Workspace(micro(data=SIZES | source), base_model=model, folder=tmp_path / "made") for _ in range(2))
    train = first.reports[0]
    assert (train.kept, train.refused, train.unread, train.used) == (26, 14, 20, {"train": 24})
    assert "used: 24 train, 2 more would fit, 20 not looked at" in str(train)
    assert again.reports == first.reports
    for split in SPLITS:
        pairs, same = dict(first.pairs.items())[split], dict(again.pairs.items())[split]
        assert same[:] == pairs[:] and len(pairs) == (24 if split == "train" else 0)
    assert first.pairs["train"]["line"][:] == again.tokenized["train"]["line"][:]
    with pytest.raises(ValueError, match="the test split has no usable"):
        _ = again.tokenized["test"]


def test_pairs_that_the_generator_cannot_learn_from_are_said(workspace, tmp_path, caplog):
    file = write_rows(tmp_path / "half.jsonl", 60, lambda i: i % 2)
    ws = workspace(file, data={"max_length": 1500})
    with caplog.at_level(logging.WARNING):
        assert all(line % 2 for line in ws.training_pairs(128)["line"])
    assert "training pairs of the generator: " in caplog.text and "reply too long" in caplog.text
    with pytest.raises(ValueError, match="no training pair fits into the generator's max_length 3"):
        ws.training_pairs(3)
