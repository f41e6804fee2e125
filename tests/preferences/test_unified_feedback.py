"""Unified-Feedback and Skywork: which rows are taken, and how they are labelled and split."""

import pytest
from published import SKYWORK, VAL, columns, load, rated, skywork, write_lines, write_parquet
from rows import assistant, user

from icrm_lib.preferences.paper import SPLITS


def test_ties_are_dropped_before_every_second_row_is_taken(unified, tmp_path):
    pairs, (train, validation, test) = load("unified-feedback", unified, tmp_path / "made", stride=2)
    # 1, 2, 4, 5, 7, 8, 10, 11 differ in their ratings; lines count from 1.
    assert columns(pairs["train"], "line", "chosen", "rejected", "margin", "source") == [
        (i + 1, f"A to t{i}", f"B to t{i}", 1.5, "openai/webgpt_comparisons") for i in (1, 4, 7, 10)
    ]
    assert pairs["train"]["prompt"][0] == [user("t1")]
    assert columns(pairs["test"], "line", "chosen") == [(i + 1, f"B to v{i}") for i in (0, 2, 4, 6)]
    assert columns(pairs["validation"], "line", "chosen") == [(i + 1, f"B to v{i}") for i in (1, 3, 5, 7)]
    assert train.notes[0] == (
        "llm-blender/Unified-Feedback: 4 rows with equal ratings dropped; of the 8 others those at 0, 2, 4, ... taken "
        "(counted from 0)"
    )
    assert (train.kept, validation.kept, test.kept, train.refused) == (4, 4, 4, 0)


@pytest.mark.parametrize(
    ("stride", "train", "test", "validation"),
    [
        (1, [1, 2, 4, 5, 7, 8, 10, 11], [0, 2, 4, 6], [1, 3, 5, 7]),  # no row half-way: the two take turns
        (3, [1, 5, 10], [0, 3, 6], [1, 4, 7]),
        (4, [1, 7], [0, 4], [2, 6]),
    ],
)
def test_the_stride_decides_which_rows(unified, tmp_path, stride, train, test, validation):
    pairs, _ = load("unified-feedback", unified, tmp_path / "made", stride=stride)
    asked = {split: [prompt[0]["content"] for prompt in pairs[split]["prompt"]] for split in SPLITS}
    want = {"train": [f"t{i}" for i in train]}
    want |= {"test": [f"v{i}" for i in test], "validation": [f"v{i}" for i in validation]}
    assert asked == want


def test_a_post_to_summarize_is_asked_for_its_summary(tmp_path):
    rows = [rated(" my post\n", 0, 1, "openai/summarize_from_feedback(comparisons)"), rated(" other ", 0, 1)]
    write_lines(tmp_path / "train.jsonl", rows)
    write_lines(tmp_path / "val.jsonl", VAL)
    pairs, _ = load("unified-feedback", tmp_path, tmp_path / "made")
    assert pairs["train"]["prompt"][:] == [
        [user("Generate one-sentence summary for the following post: my post")],
        [user(" other ")],
    ]
    assert pairs["train"]["chosen"][0] == "B to  my post\n"


def test_no_prompt_is_in_two_splits_and_what_is_left_out_is_counted(tmp_path):
    write_lines(tmp_path / "train.jsonl", [rated(f"t{i}", 1, 0) for i in range(4)])
    asked = ["v0", "v1", "t1", "v0 ", " t2", "v2", "v3", "v2"]
    write_lines(tmp_path / "val.jsonl", [rated(question, 1, 0) for question in asked])
    pairs, (train, validation, test) = load("unified-feedback", tmp_path, tmp_path / "made")
    # test: v0, t1, t2, v3; validation: v1, "v0 ", v2, v2. A prompt may occur twice in one split.
    assert [p[0]["content"] for p in pairs["test"]["prompt"]] == ["v0", "v3"]
    assert [p[0]["content"] for p in pairs["validation"]["prompt"]] == ["v1", "v2", "v2"]
    assert "2 rows left out: their prompt is in train" in test.notes
    assert "1 rows left out: their prompt is in test" in validation.notes
    assert "1 rows repeat an earlier row (kept)" in validation.notes
    assert (train.kept, validation.kept, test.kept) == (4, 3, 2)
    ids = [set(pairs[split]["prompt_id"]) for split in SPLITS]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])


def test_rows_of_another_form_are_refused_with_line_and_reason(tmp_path):
    good = [rated(f"t{i}", 1, 0) for i in range(3)]
    other = good[0] | {"conv_B": [user("another question"), assistant("B")]}
    rows = [
        good[0],
        good[1] | {"conv_A_rating": None},
        other,
        good[1] | {"conv_A": [user("t1")]},
        good[2] | {"conv_B": "text"},
        good[2],
    ]
    write_lines(tmp_path / "train.jsonl", rows)
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"conv_A": [\n')
    write_lines(tmp_path / "val.jsonl", VAL)
    pairs, (train, _, _) = load("unified-feedback", tmp_path, tmp_path / "made")
    assert [(refusal.line, refusal.reason) for refusal in train.refusals] == [
        (2, "no two ratings"),
        (3, "chosen and rejected have different prompts"),
        (4, "'chosen' does not end with an assistant turn"),
        (5, "missing key 'prompt'"),
        (7, "JSON syntax error"),
    ]
    assert pairs["train"]["line"][:] == [1, 6]


def test_every_tenth_pair_of_skywork_is_the_test(unified, tmp_path):
    write_parquet(unified / SKYWORK / "data" / "train-00000-of-00001.parquet", [skywork(i) for i in range(22)])
    pairs, (train, _, _) = load("skywork+unified-feedback", unified, tmp_path / "made", stride=2)
    assert columns(pairs["test"], "line", "chosen") == [(i + 1, f"good {i}") for i in (0, 10, 20)]
    rest = [(i + 1, f"good {i}", "magpie") for i in range(22) if i % 10]
    more = [(22 + i + 1, f"A to t{i}", "openai/webgpt_comparisons") for i in (1, 4, 7, 10)]
    assert columns(pairs["train"], "line", "chosen", "source") == rest + more
    assert pairs["train"]["prompt"][0] == [user("sky 1"), assistant("hm"), user("and?")]
    assert [p[0]["content"] for p in pairs["validation"]["prompt"]] == ["v1", "v3", "v5", "v7"]
    assert "margin" not in pairs["train"].column_names  # Skywork has no ratings
    assert "no margin column: only 4 of 23 rows are rated" in train.notes
    assert "line 23 and on: line 1 and on of llm-blender/Unified-Feedback" in train.notes
