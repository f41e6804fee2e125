"""Pairs from files and the hub, in every form of a row, and what the report says of them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset
from rows import assistant, good, user, write

from icrm_lib.preferences import load_preferences, preference_rows
from icrm_lib.preferences import loading as preferences


def test_the_report_is_a_short_stable_table(tmp_path):
    rows = [good(prompt=f"q{i}") for i in range(3)] + [good(chosen="")] * 7 + [{"prompt": "a"}, good(prompt="q0")]
    _, report = load_preferences(write(tmp_path / "rows.jsonl", *rows))
    assert str(report) == (
        "WARNING: 8 of 12 (67%) rows are refused, 7 of them for: empty text in 'chosen'\n"
        "rows.jsonl: 4 kept, 8 refused\n"
        "       7  empty text in 'chosen' (line 4, 5, 6, 7, 8, ...)\n"
        "          line 4: found ''; fill it or drop the row\n"
        "       1  missing key 'chosen' (line 11)\n"
        "          line 11: add it (keys here: prompt)\n"
        "  note: 1 rows repeat an earlier row (kept)"
    )


TALK = [user("q"), assistant("a"), user("r")]
WHOLE = {"chosen": [*TALK, assistant("x")], "rejected": [*TALK, assistant("y")]}
SAME = [  # ways to write the same pair
    {"prompt": TALK, "chosen": "x", "rejected": "y"},
    {"prompt": TALK[:1], "chosen": WHOLE["chosen"][1:], "rejected": WHOLE["rejected"][1:]},
    WHOLE,
    {"prompt": "r", **WHOLE},
]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "parquet"])
def test_forms_of_a_row_and_of_a_file(form, tmp_path):
    path = tmp_path / f"pairs.{form}"
    if form == "jsonl":
        write(path, *SAME)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(write(path, *SAME).read_bytes()))
    elif form == "json":
        path.write_text(json.dumps([*SAME[:2], "no row", *SAME[2:]], indent=1))
    else:
        rows = [
            {**row, "prompt": [user(row["prompt"])] if isinstance(row.get("prompt"), str) else row.get("prompt")}
            for row in SAME[1:]
        ]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    dataset, report = load_preferences(path)
    lines = {"json": [1, 2, 4, 5], "parquet": [1, 2, 3]}.get(form, [1, 2, 3, 4])
    assert dataset["line"][:] == lines
    assert [r.line for r in report.refusals] == ([3] if form == "json" else [])
    for row in dataset:
        assert row["prompt"] == SAME[0]["prompt"] and (row["chosen"], row["rejected"]) == ("x", "y")
    assert len(set(dataset["prompt_id"])) == 1
    assert report.notes == [f"{len(lines) - 1} rows repeat an earlier row (kept)"]
    again, _ = preference_rows(dataset.select([len(lines) - 1]))
    assert again[0] == dataset[len(lines) - 1]


def test_ratings_become_margins(tmp_path):
    rows = [
        good(chosen_rating=4, rejected_rating=1.5),
        good(prompt="b", chosen_score=1, rejected_score=3),
        good(prompt="c", score_chosen=2, score_rejected=1.5),
        good(prompt="d", margin=-0.25, chosen_score=9, rejected_score=1),
    ]
    dataset, report = load_preferences(write(tmp_path / "rated.jsonl", *rows))
    assert dataset["margin"][:] == [2.5, -2.0, 0.5, -0.25]
    assert report.warnings == [
        "2 of 4 rated pairs rate the chosen reply lower than the rejected one; are the two exchanged, or is a low "
        "number the better one?"
    ]
    assert str(report).startswith("WARNING: 2 of 4 rated pairs")
    dataset, report = load_preferences(write(tmp_path / "rated.jsonl", *rows, good(prompt="e", margin=None)))
    assert "margin" not in dataset.column_names and "no margin column: only 4 of 5 rows are rated" in report.notes
    assert "margin" not in load_preferences(write(tmp_path / "unrated.jsonl", good()))[0].column_names


def test_sources_repetitions_and_contradictions(tmp_path):
    opposite = {"prompt": "Name  a colour. ", "chosen": "Egg.", "rejected": "Blue."}
    rows = good(source="s"), good(source=3), opposite, good(prompt="name a colour.")
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", *rows))
    assert dataset["source"][:] == ["s", None, None, None]
    counted = ["1 rows repeat an earlier row (kept)", "1 rows prefer the opposite of an earlier row (kept)"]
    assert report.notes == counted
    first, same, spaced, other = dataset["prompt_id"][:]
    assert first == same == spaced != other


def test_prompt_ids_never_change(tmp_path):
    # Splits are made from them: a changed id moves prompts from training to test sets.
    dataset, _ = load_preferences(write(tmp_path / "a.jsonl", good()))
    assert dataset["prompt_id"][:] == ["f1dd003a520c270e"]


def test_places_that_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file 'data/train.jsonl'.*check the spelling"):
        load_preferences("data/train.jsonl")
    with pytest.raises(FileNotFoundError, match="check the spelling"):
        load_preferences(Path("owner/name"))
    with pytest.raises(IsADirectoryError, match="name one"):
        load_preferences(tmp_path)
    write(Path("a.jsonl"), good())
    with pytest.raises(ValueError, match="for hub data sets"):
        load_preferences("a.jsonl", split="test")


def test_hub_ids(monkeypatch):
    seen = []

    def fake(name, *, split, revision):
        seen.append((name, split, revision))
        if split == "gone":
            raise RuntimeError("no network")
        return Dataset.from_list([good(), good(chosen="")])

    monkeypatch.setattr(preferences.datasets, "load_dataset", fake)
    dataset, report = load_preferences("owner/some-name", split="train[:2]", revision="abc")
    assert seen == [("owner/some-name", "train[:2]", "abc")]
    assert dataset["line"][:] == [1] and report.refusals[0].line == 2 and report.source == "owner/some-name"
    with pytest.raises(ConnectionError, match="'gone'.*'owner/some-name'.*no network.*check the id"):
        load_preferences("owner/some-name", split="gone")


def test_a_hub_id_without_network_is_a_clear_error(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(preferences.datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="nobody-here/no-such-set.*check the id, the split and the network"):
        load_preferences("nobody-here/no-such-set")
