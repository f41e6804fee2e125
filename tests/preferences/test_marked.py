"""Public data with marked places: pairs and spans as the tables give them, bad rows by line, files as published."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from icrm_lib.preferences import marked
from icrm_lib.preferences.marked import load_mqm, load_process_bench, load_qa_feedback, mqm
from icrm_lib.runtime import project_root

HEADER = ("system", "doc", "doc_id", "seg_id", "rater", "source", "target", "category", "severity")
LONG = "The cat sat on the mat, said she."


def table(path, *rows, header=HEADER):
    """Rows: system, rater, target, category, severity (of segment 1), with the segment's number in front if another."""
    lines = ["\t".join(header)]
    for row in rows:
        segment, system, rater, target, category, severity = row if isinstance(row[0], int) else (1, *row)
        values = (system, "talk", "1", str(segment), rater, f"原文 <v>{segment}</v>", target, category, severity)
        lines.append("\t".join(values))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


TABLE = (
    ("A", "r1", "The <v>cat</v> sat on the mat, said she.", "Accuracy/Mistranslation", "Major"),
    ("A", "r1", "The cat sat on the mat<v>,</v> said she.", "Fluency/Punctuation", "Minor"),
    ("A", "r1", LONG, "Accuracy/Omission", "Minor"),
    ("B", "r1", "A dog said <v>it</v>.", "Style/Awkward", "Minor"),
    ("C", "r2", "A dog said so.", "No-error", "No-error"),
    ("D", "r2", "<v>Mumble.</v>", "Non-translation!", "Major"),
    (2, "A", "r1", "One.", "No-error", "No-error"),
    (2, "B", "r1", "Two.", "No-error", "No-error"),
)


def test_mqm_scores_are_the_official_weights_and_pairs_their_differences(tmp_path):
    pairs, responses, (of_pairs, of_responses) = load_mqm(table(tmp_path / "a.tsv", *TABLE))
    first = {row["source"]: row for row in responses if "1" in row["prompt"][0]["content"]}
    assert {name: row["error_score"] for name, row in first.items()} == {"A": 6.1, "B": 1.0, "C": 0.0, "D": 25.0}
    assert first["A"]["response"] == LONG and first["A"]["prompt"][0]["content"] == "Translate this text:\n原文 1"
    assert [(LONG[s["start"] : s["end"]], s["label"]) for s in first["A"]["spans"]] == [
        ("cat", "Accuracy/Mistranslation"),
        (",", "Fluency/Punctuation"),
    ]
    assert "1 errors without a place" in str(of_responses)
    assert sorted(pairs["margin"][:]) == [1.0, 5.1, 6.1, 18.9, 24.0, 25.0]
    of_raters = {row["margin"]: row["source"] for row in pairs}
    assert of_raters[5.1] == "one rater" and of_raters[1.0] == "two raters" and of_raters[25.0] == "one rater"
    (worst,) = (row for row in pairs if row["margin"] == 5.1)
    assert worst["rejected_spans"] == first["A"]["spans"] and worst["chosen_spans"] == first["B"]["spans"]
    assert sum(of_pairs.dropped.values()) == 1  # segment 2 is a tie


def test_which_mqm_pairs_and_what_stands_before_them(tmp_path):
    path = table(tmp_path / "a.tsv", *TABLE)
    whole = load_mqm(path)
    assert sorted(load_mqm(path, least_margin=6).pairs["margin"][:]) == [6.1, 18.9, 24.0, 25.0]
    assert sorted(load_mqm(path, same_rater=True).pairs["margin"][:]) == [5.1, 25.0]
    asked = load_mqm(path, prompt="reference", reference="C")
    assert set(asked.responses["source"][:]) == {"A", "B", "D"} and "A dog said so." in str(asked.pairs["prompt"][0])
    assert "2 translations left out, which are references or of segments without one" not in str(whole.reports[1])
    plain = load_mqm(path, prompt="none")
    # However they are asked, they are of the same segment, so no fold parts them.
    assert plain.pairs["prompt_id"][:] == whole.pairs["prompt_id"][:] and len(set(plain.responses["prompt_id"][:])) == 2
    assert set(asked.pairs["prompt_id"][:]) <= set(whole.pairs["prompt_id"][:])
    with pytest.raises(ValueError, match="no translation by the system 'E'; name one of A, B, C, D"):
        load_mqm(path, prompt="reference", reference="E")
    with pytest.raises(ValueError, match="prompt='target' is none of source"):
        load_mqm(path, prompt="target")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("E", "r1", "No <v>end.", "Fluency/Grammar", "Minor"), "no whole marked place"),
        (("E", "r1", "</v>No<v> end.", "Fluency/Grammar", "Minor"), "no whole marked place"),
        (("E", "r1", "<v>Two</v> <v>places</v>.", "Fluency/Grammar", "Minor"), "no whole marked place"),
        (("E", "r1", "A <v>word</v>.", "Fluency/Grammar", "Severe"), "unknown severity"),
        (("E", "r1", "A <v>word</v>.", "No-error", "No-error"), "a marked place without an error"),
        (("A", "r1", "Another <v>text</v>.", "Fluency/Grammar", "Minor"), "another text than"),
    ],
)
def test_a_bad_row_of_mqm_is_refused_by_line_with_its_whole_translation(tmp_path, row, reason):
    good = (("E", "r1", "A word.", "Fluency/Grammar", "Minor"),) if row[0] == "E" and "word" in row[2] else ()
    pairs, responses, (_, report) = load_mqm(table(tmp_path / "a.tsv", *TABLE, *good, row))
    assert [refusal.line for refusal in report.refusals] == [len(TABLE) + len(good) + 2]
    assert reason in report.refusals[0].reason and "1 translations left out" in str(report)
    lost = [one for one in responses if one["source"] == row[0] and one["prompt"][0]["content"].endswith("1")]
    assert not lost and len(pairs) == (6 if row[0] == "E" else 3)


def test_other_tables_are_none_of_mqm(tmp_path):
    with pytest.raises(ValueError, match=r"a\.tsv has no column 'severity', so it is no table of MQM"):
        load_mqm(table(tmp_path / "a.tsv", header=HEADER[:-1]))


def question(**changes):
    row = {
        "question": "Who sat where?",
        "passages": [["Cats", "A cat sat on a mat.", "It was red."], ["Dogs", "None."]],
        "prediction 1": LONG,
        "prediction 2": "A cat.",
        "prediction 3": "On a mat.",
        "prediction 4": "Nobody.",
        "preference": [1, 2, 0, 1, 2, 1],
        "feedback": {
            "errors": [{"start": 4, "end": 7, "error type": "Irrelevant", "explanation": ""}],
            "missing-info": [{}, {}],
            "corrected-prediction": "The cat sat.",
        },
    }
    return {**row, **changes}


def errors(*found):
    return {"feedback": {"errors": list(found), "missing-info": []}}


def write(path, *rows):
    path.write_text(json.dumps(rows))
    return path


def test_qa_feedback_gives_five_pairs_and_the_spans_of_the_first_answer(tmp_path):
    pairs, responses, (of_pairs, _) = load_qa_feedback(write(tmp_path / "dev_feedback.json", question()).parent)
    first = {"start": 4, "end": 7, "label": "Irrelevant"}
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        (LONG, "A cat."),
        ("On a mat.", LONG),
        ("A cat.", "On a mat."),
        ("Nobody.", "A cat."),
        ("On a mat.", "Nobody."),
    ]
    assert pairs["chosen_spans"][:] == [[first], None, None, None, None]
    assert pairs["rejected_spans"][:] == [None, [first], None, None, None]
    assert sum(of_pairs.dropped.values()) == 1
    assert responses["response"][:] == [LONG] and responses["spans"][:] == [[first]] and responses["missing"][:] == [2]


def test_passages_stand_before_the_question_and_change_no_fold(tmp_path):
    path = write(tmp_path / "a.json", question())
    plain, full = load_qa_feedback(path), load_qa_feedback(path, passages=True)
    text = full.pairs[0]["prompt"][0]["content"]
    assert text == "Cats\nA cat sat on a mat. It was red.\n\nDogs\nNone.\n\nWho sat where?"
    assert full.pairs["prompt_id"][:] == plain.pairs["prompt_id"][:] and plain.pairs[0]["prompt"][0]["content"] != text
    assert full.responses["prompt_id"][:] == plain.responses["prompt_id"][:] == plain.pairs["prompt_id"][:1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prediction 3": None}, "no question with four answers"),
        ({"question": "Who \ud83e?"}, "half a character in 'prompt'"),
        ({"preference": [1, 2, 0, 1, 2]}, "no six comparisons"),
        ({"preference": [1, 2, 0, 1, 2, 3]}, "no six comparisons"),
        ({"passages": ["Cats"]}, "passages are no lists"),
        ({"feedback": {"errors": ["Irrelevant"], "missing-info": []}}, "an error is no object"),
        (
            {"feedback": {"errors": [{"start": 4, "end": 99, "error type": "a"}], "missing-info": []}},
            "outside the text",
        ),
        ({"feedback": {"errors": [{"start": 4, "end": 7}], "missing-info": []}}, "a span without a label"),
    ],
)
def test_a_bad_question_is_refused_by_line(tmp_path, changes, reason):
    pairs, responses, reports = load_qa_feedback(write(tmp_path / "a.json", question(), question(**changes)))
    assert set(pairs["line"][:]) - {2} == {1} and responses["line"][:] == [1]
    for report in reports:
        assert {refusal.line for refusal in report.refusals} == {2} and reason in report.refusals[0].reason


def solution(**changes):
    row = {"problem": "1 + 1?", "steps": ["One 😀.", "Then two.", "So 3."], "label": 1, "final_answer_correct": False}
    return {"id": "a-0", "generator": "m", **row, **changes}


def test_process_bench_marks_the_first_wrong_step(tmp_path):
    rows = [solution(), solution(label=-1, final_answer_correct=True, problem="2?"), solution(label=0, generator="n")]
    dataset, report = load_process_bench("math", files=write(tmp_path / "math.json", *rows).parent)
    assert dataset[0]["response"] == "One 😀.\n\nThen two.\n\nSo 3."
    wrong = [[row["response"][s["start"] : s["end"]] for s in row["spans"]] for row in dataset]
    assert wrong == [["Then two."], [], ["One 😀."]]
    ends = dataset[0]["step_ends"]
    assert [dataset[0]["response"][:end].rpartition("\n")[2] for end in ends] == rows[0]["steps"]
    assert dataset["outcome"][:] == [0.0, 1.0, 0.0] and dataset["first_error"][:] == [1, -1, 0]
    assert dataset["source"][:] == ["m", "m", "n"] and report.refused == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"label": 3}, "no such step"),
        ({"label": -2}, "no such step"),
        ({"label": True}, "no such step"),
        ({"steps": []}, "no solution in steps"),
        ({"steps": ["a", " "]}, "a step is no text"),
        ({"final_answer_correct": 1}, "neither true nor false"),
        ({"problem": None}, "no solution in steps"),
    ],
)
def test_a_bad_solution_is_refused_by_line(tmp_path, changes, reason):
    dataset, report = load_process_bench(files=write(tmp_path / "a.json", solution(), solution(**changes)))
    assert dataset["line"][:] == [1] and [refusal.line for refusal in report.refusals] == [2]
    assert reason in report.refusals[0].reason


def test_an_unknown_subset_is_named():
    with pytest.raises(ValueError, match="unknown subset 'gsm8'; did you mean 'gsm8k'"):
        load_process_bench("gsm8")


def test_the_address_is_read_when_its_bytes_are_the_published_ones(tmp_path, served, monkeypatch):
    path = table(tmp_path / "b.tsv", *TABLE)
    there = replace(marked.MQM_TED_ZHEN, url=f"{served}/b.tsv", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(mqm, "MQM_TED_ZHEN", there)
    pairs, _, reports = load_mqm()
    assert len(pairs) == 6 and "another file" not in str(reports[0])
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(ValueError, match=r"b\.tsv gave another file than the published one .*curl -L"):
        load_mqm()
    _, _, reports = load_mqm(path)  # a file of one's own may be another one, and the report says so
    assert "b.tsv is another file than the published one" in str(reports[0])
    monkeypatch.setattr(mqm, "MQM_TED_ZHEN", replace(there, url=f"{served}/c.tsv"))
    with pytest.raises(ConnectionError, match=r"cannot read http.*c\.tsv.*run `curl -L -o mqm_ted_zhen\.tsv"):
        load_mqm()


def test_a_folder_without_the_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no dev_feedback.json or .* in .*curl -L -o dev_feedback"):
        load_qa_feedback(tmp_path)


@pytest.mark.parametrize("file", [marked.MQM_TED_ZHEN, marked.QA_FEEDBACK, *marked.PROCESS_BENCH.values()])
def test_addresses_name_a_commit_and_a_checksum(file):
    owner, _, commit = file.url.removeprefix("https://raw.githubusercontent.com/").split("/")[:3]
    assert owner and len(commit) == 40 and set(commit + file.sha256) <= set("0123456789abcdef")
    assert len(file.sha256) == 64 and Path(file.url).name in file.names


def test_the_real_files_give_what_their_authors_counted():
    folder = project_root().parent / "shared" / "data" / "real"
    if not folder.is_dir():
        pytest.skip("the data with marked places are not at ../shared/data/real beside the project")
    qa = load_qa_feedback(folder)
    assert len(qa.pairs) == 2104 and sum(map(len, qa.responses["spans"][:])) == 1110
    solutions, _ = load_process_bench(files=folder)
    assert len(solutions) == 400 and sum(solutions["outcome"][:]) == 200
