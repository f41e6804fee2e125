"""Marked places of responses: what fits, what is refused by line, and which tokens they touch."""

import re

import numpy as np
import pytest
from datasets import Dataset
from fuzz import FUZZ, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import assistant, good, user, write

from icrm_lib.preferences import load_preferences, load_spans, preference_rows, token_labels
from icrm_lib.preferences.spans import read_spans
from icrm_lib.rows import BadRow
from icrm_lib.tokenization import tokenize_conversations

TEXT = "Zürich 😀 liegt in 北京."


def span(start, end, label="wrong"):
    return {"start": start, "end": end, "label": label}


def marked(*spans, **changes):
    return {"prompt": "Where is Zürich?", "response": TEXT, "spans": list(spans), **changes}


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_responses_keep_their_spans_and_the_report_counts_them(tmp_path, ending):
    rows = [marked(span(18, 20), span(7, 8, "emoji"), source="a"), marked(prompt="And?", source="b")]
    path = tmp_path / f"a.{ending}"
    write(path, *rows) if ending == "jsonl" else Dataset.from_list(rows).to_parquet(path)
    dataset, report = load_spans(path)
    assert dataset["spans"][:] == [[span(7, 8, "emoji"), span(18, 20)], []]  # in the order of their starts
    assert [TEXT[s["start"] : s["end"]] for s in dataset[0]["spans"]] == ["😀", "北京"]
    assert dataset["prompt"][:] == [[user("Where is Zürich?")], [user("And?")]]
    assert dataset["line"][:] == [1, 2] and len(set(dataset["prompt_id"][:])) == 2
    assert report.kept == 2 and report.refused == 0
    assert "2 spans in 1 of 2 responses: 1 emoji, 1 wrong" in str(report)


FAULTS = {
    "reaches outside the text": span(0, len(TEXT) + 1),
    "outside": span(-1, 3),
    "ends before it begins": span(3, 3),
    "before it begins": span(4, 3),
    "start of a span in 'spans' is no integer": span(0.0, 3),
    "end of a span in 'spans' is no integer": span(0, "3"),
    "is no integer": span(True, 3),
    "without a label": span(0, 3, " "),
    "a span without 'label'": {"start": 0, "end": 3},
    "wrong type in 'spans'": "0:3",
    "half a character in 'spans'": span(0, 3, "a\ud83e"),
}


@pytest.mark.parametrize("reason", FAULTS)
def test_offsets_that_do_not_fit_are_refused_by_line(tmp_path, reason):
    path = write(tmp_path / "a.jsonl", marked(span(0, 3)), marked(span(0, 3), FAULTS[reason]), marked())
    dataset, report = load_spans(path)
    assert dataset["line"][:] == [1, 3]
    assert [refusal.line for refusal in report.refusals] == [2] and reason in report.refusals[0].reason
    assert sum(report.counts().values()) == report.refused == 1
    with pytest.raises(ValueError, match=rf"a\.jsonl:2: .*{re.escape(reason)}"):
        load_spans(path, strict=True)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (marked(response=" "), "empty text in 'response'"),
        (marked(spans=None), "'spans' is null"),
        ({"prompt": "a", "response": "b"}, "missing key 'spans'"),
        (marked(response=[assistant("a"), user("b"), assistant("c")]), "no single reply"),
        (marked(passage="Zürich lies in Switzerland, on its lake."), "would be lost"),
        ([], "not a JSON object"),
    ],
)
def test_other_bad_rows(tmp_path, row, reason):
    _, report = load_spans(write(tmp_path / "a.jsonl", marked(), row))
    assert [refusal.line for refusal in report.refusals] == [2] and reason in report.refusals[0].reason
    with pytest.raises(ValueError, match="no usable response"):
        load_spans(write(tmp_path / "b.jsonl", row))


def test_pairs_carry_the_spans_of_both_sides(tmp_path):
    rows = [
        good(chosen_spans=[span(0, 4)], rejected_spans=[]),
        good(chosen_spans=None, prompt="b"),
        good(rejected_spans=[span(0, 5)], prompt="c"),
    ]
    dataset, report = load_preferences(write(tmp_path / "a.jsonl", *rows))
    assert dataset["chosen_spans"][:] == [[span(0, 4)], None] and dataset["rejected_spans"][:] == [[], None]
    assert [(r.line, r.reason) for r in report.refusals] == [(3, "a span in 'rejected_spans' reaches outside the text")]
    again, _ = preference_rows(dataset)
    assert again["chosen_spans"][:] == dataset["chosen_spans"][:]
    without, _ = load_preferences(write(tmp_path / "b.jsonl", good()))
    assert not {"chosen_spans", "rejected_spans"} & set(without.column_names)


def test_spans_move_with_text_that_is_taken_off(tmp_path):
    row = good(
        prompt="Name a colour.",
        chosen="Name a colour. Blue.</s>",
        rejected="Name a colour.\nAn egg.</s>",
        chosen_spans=[span(15, 19)],
        rejected_spans=[span(18, 21)],
    )
    dataset, _ = load_preferences(write(tmp_path / "a.jsonl", row))
    for side, word in (("chosen", "Blue"), ("rejected", "egg")):
        (place,) = dataset[0][f"{side}_spans"]
        assert dataset[0][side][place["start"] : place["end"]] == word
    # What lay in the part that was taken off, lies in no reply.
    _, report = load_preferences(write(tmp_path / "b.jsonl", good(), {**row, "chosen_spans": [span(0, 4)]}))
    assert [r.line for r in report.refusals] == [2]


def test_spans_of_several_pairs_in_a_row_are_refused(tmp_path):
    several = good(chosen=["Blue.", "Red."], chosen_spans=[span(0, 2)])
    _, report = load_preferences(write(tmp_path / "a.jsonl", good(), several))
    assert "'chosen_spans' in a row of several pairs" in report.refusals[0].reason


def test_a_token_counts_where_one_of_its_characters_is_marked():
    offsets = [[(0, 3), (3, 7), (7, 8), (8, 10), (10, 10)]]
    labels = token_labels(offsets, [[span(2, 3, "a"), span(7, 8, "b"), span(9, 10, "a")]])
    assert list(labels) == ["a", "b"]
    assert labels["a"][0].tolist() == [True, False, False, True, False]
    assert labels["b"][0].tolist() == [False, False, True, False, False]
    nothing = token_labels(offsets, [[]], ["a"])
    assert nothing["a"][0].shape == (5,) and not nothing["a"][0].any()
    with pytest.raises(ValueError, match="offsets of 1 responses but spans of 0"):
        token_labels(offsets, [])


@pytest.mark.parametrize("style", ["llama3", "gemma", "zephyr", "qwen3"])
def test_tokens_of_many_bytes_and_tokens_across_an_edge(style, tokenizers):
    spans = [span(2, 3, "inside a word"), span(7, 8, "emoji"), span(19, 20, "second of two")]
    talk = [user("Where?"), assistant(TEXT)]
    (row,) = tokenize_conversations(tokenizers[style], [talk], offsets=True)
    labels = token_labels([row.offsets], [spans])
    for place in spans:
        inside = set(range(place["start"], place["end"]))
        expected = [bool(inside & set(range(*offsets))) for offsets in row.offsets]
        assert labels[place["label"]][0].tolist() == expected and any(expected)
    assert not any(label[0][-1] for label in labels.values())  # the closing token has no character
    # An emoji of four bytes may be several tokens, each of which is the whole character.
    assert labels["emoji"][0].sum() >= 1


def test_every_token_of_a_wholly_marked_text_counts(tokenizers):
    (row,) = tokenize_conversations(tokenizers["llama3"], [[user("?"), assistant(TEXT)]], offsets=True)
    whole = token_labels([row.offsets], [[span(0, len(TEXT))]])["wrong"][0]
    np.testing.assert_array_equal(whole, [start < end for start, end in row.offsets])


def test_no_spans_are_other_than_nobody_looked():
    assert read_spans(None, TEXT, "spans") is None and read_spans([], TEXT, "spans") == []
    with pytest.raises(BadRow, match="give a list"):
        read_spans({}, TEXT, "spans")


OFFSETS = st.integers(-2, 24) | st.sampled_from([10**400, 1.0, True, None, "1", float("nan")])
ODD = st.none() | st.integers() | TEXTS | st.dictionaries(TEXTS, TEXTS, max_size=2)
SPANS = st.fixed_dictionaries({"start": OFFSETS, "end": OFFSETS}, optional={"label": TEXTS | ODD})


@given(rows=st.lists(st.lists(SPANS | ODD, max_size=3) | ODD, max_size=4), prompt=TEXTS, source=TEXTS | ODD)
@settings(max_examples=40, **FUZZ)
def test_any_spans_are_kept_to_the_letter_or_refused(rows, prompt, source, tmp_path):
    path = write(tmp_path / "a.jsonl", marked(), *(marked(spans=row, prompt=prompt, source=source) for row in rows))
    dataset, report = load_spans(path)
    assert report.kept + report.refused == len(rows) + 1 and str(report).encode()
    for row in (row for row in dataset if row["line"] > 1):
        given_ones = rows[row["line"] - 2]
        assert sorted(map(str, row["spans"])) == sorted(str(span(s["start"], s["end"], s["label"])) for s in given_ones)
        assert all(0 <= s["start"] < s["end"] <= len(TEXT) for s in row["spans"])
