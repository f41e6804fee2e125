"""Every fault of a row: what is said about it, at which line, and that the rows around it stay."""

import json
from pathlib import Path

import pytest
from datasets import Dataset
from faults import FAULTS, RATINGS, with_number
from rows import as_line, assistant, good, user, write

from icrm_lib.preferences import load_preferences, preference_rows


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_between_good_rows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row, reason, word = FAULTS[name]
    dataset, report = load_preferences(write(Path("a.jsonl"), good(), b"", row, good(prompt="Why?")))
    assert dataset["line"][:] == [1, 4] and report.kept == 2
    (refusal,) = report.refusals
    assert (refusal.file, refusal.line) == ("a.jsonl", 3)
    assert refusal.reason.startswith(reason) and word in refusal.remedy
    assert f"{refusal.reason} (line 3)\n          line 3: {refusal.remedy}" in str(report)
    str(report).encode()  # can be printed whatever the row holds
    assert max(map(len, str(report).splitlines())) < 300
    with pytest.raises(ValueError) as error:
        load_preferences("a.jsonl", strict=True)
    assert str(error.value) == str(refusal) and str(refusal).startswith("a.jsonl:3: ")
    with pytest.raises(ValueError) as error:
        load_preferences(write(Path("bad.jsonl"), good(chosen=""), row))
    assert "bad.jsonl: 0 kept, 2 refused" in str(error.value) and reason in str(error.value)


def test_all_faults_in_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines, expected, kept = [], [], []
    for i, (row, reason, word) in enumerate(FAULTS.values()):
        lines.append(as_line(good(prompt=f"Question {i}\u2028 \x85?")).replace(b"\\u2028", "\u2028".encode()))
        kept.append(len(lines))
        lines += [b"", as_line(row)]
        expected.append((len(lines), reason, word))
    Path("messy.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(lines))  # BOM, CRLF, blank lines
    dataset, report = load_preferences("messy.jsonl")
    assert dataset["line"][:] == kept and report.kept == len(kept)
    assert dataset["prompt"][3] == [user("Question 3\u2028 \x85?")]
    for refusal, (line, reason, word) in zip(report.refusals, expected, strict=True):
        assert refusal.line == line and refusal.reason.startswith(reason) and word in refusal.remedy
        assert refusal.file == "messy.jsonl"
    assert report.refused == len(FAULTS) == sum(report.counts().values())
    assert str(tmp_path) not in str(report)
    with pytest.raises(ValueError, match=r"^messy.jsonl:3: JSON syntax error; .*column 31"):
        load_preferences("messy.jsonl", strict=True)


ODD = {  # a row, or its bytes, and the reply that must come out
    "U+2028 and U+0085 in a text": (
        json.dumps(good(chosen="a\u2028b\x85c"), ensure_ascii=False).encode(),
        "a\u2028b\x85c",
    ),
    "byte-order mark in the middle": (b"\xef\xbb\xbf" + as_line(good()), "Blue."),
    "carriage return": (as_line(good()) + b"\r", "Blue."),
    "white space around": (b" \t" + as_line(good()) + b"  ", "Blue."),
    "1 MiB": (good(chosen="word " * (2**20 // 5)), "word " * (2**20 // 5)),
    "emoji of several": (good(chosen="👩‍🚀"), "👩‍🚀"),
    "control characters": (good(chosen="\x1b[31mred\x07"), "\x1b[31mred\x07"),
    "decomposed": (good(chosen="cafe\u0301"), "cafe\u0301"),
    "white space in code": (good(chosen="if x:\n    y", rejected="if x:\n y"), "if x:\n    y"),
    "a power": (good(chosen="10²", rejected="102"), "10²"),
    "a fraction": (good(chosen="½", rejected="1⁄2"), "½"),
    "a set of numbers": (good(chosen="ℝ", rejected="R"), "ℝ"),
    "a joiner that matters": (good(chosen="می\u200cخواهم", rejected="میخواهم"), "می\u200cخواهم"),
    "text of a special token": (good(chosen="<|im_end|><eos></s>[PAD]"), "<|im_end|><eos></s>[PAD]"),
    "markup": (good(chosen="<script>alert(1)</script>"), "<script>alert(1)</script>"),
    "no tool calls": (good(chosen=[{**assistant("a"), "tool_calls": [], "function_call": None}]), "a"),
    "the conversation once more": (good(messages=[user("Name a colour."), assistant("Blue.")]), "Blue."),
    "what is about the row": (good(category="x", chosen_model="y", feedback={"a": "z"}, promptId="w"), "Blue."),
    "large integer in another key": (good(x=10**4000), "Blue."),
    "nesting in another key": (with_number("[" * 200 + "]" * 200, "x"), "Blue."),
    "half a pair of ratings": (good(chosen_rating=3, rejected_rating=None), "Blue."),
    "empty system turn": (good(prompt=[{"role": "system", "content": ""}, user("q")]), "Blue."),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_good_rows_are_kept_as_they_are(name, tmp_path):
    row, reply = ODD[name]
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", row), strict=True)
    assert dataset["chosen"][:] == [reply] and (report.kept, report.refused) == (1, 0)


@pytest.mark.parametrize("name", RATINGS)
def test_a_rating_costs_no_row(name, tmp_path):
    row, margin = RATINGS[name]
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", row))
    assert dataset["chosen"][:] == ["Blue."] and report.refused == 0
    assert (dataset["margin"][0] if "margin" in dataset.column_names else None) == margin
    said = "1 rows: a rating that is no finite number (kept without it)" in report.notes
    assert said == (margin is None and name not in ("empty text", "half a pair", "NaN on one side"))


def test_duplicate_ids_and_contradicting_rows_are_kept_and_counted(tmp_path):
    first, second = good(id=7), good(id=7, prompt="Why?")
    opposite = good(id="x", chosen="Egg.", rejected="Blue.")
    path = write(tmp_path / "a.jsonl", first, second, opposite, good(uid=7), good(id=None))
    dataset, report = load_preferences(path, strict=True)
    assert dataset["line"][:] == [1, 2, 3, 4, 5]
    expected = [
        "2 rows repeat an earlier row (kept)",
        "3 rows prefer the opposite of an earlier row (kept)",
        "2 rows have the id of an earlier row (ids decide nothing)",
    ]
    assert report.notes == expected
    _, report = preference_rows(Dataset.from_list([good(id=1), good(id=1, prompt="Why?")]))
    assert report.notes == [expected[2].replace("2 rows", "1 rows")]
