"""Files of responses with known outcomes: every good row is read, every bad one named, no file is lost to a row."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from rows import write

from icrm_lib.best_of_n import load_outcomes

GOOD = {"prompt": "1 + 1", "responses": ["2", "3"], "correct": [True, False]}
TALK = [{"role": role, "content": text} for role, text in (("user", "1 + 1"), ("assistant", "2"), ("user", "Sure?"))]
OUTCOMES = [[1, 0], [True, False], [1.0, 0.0], ["true", "false"], ["1", "0"], ["True", "False"]]


def changed(**values):
    return {"prompt": "1 + 2", "responses": ["3", "4"], "correct": [True, False]} | values


def raw(row):
    return row if isinstance(row, bytes) else json.dumps(row).encode()


FAULTS = {
    "a repeated key": (raw(changed())[:-1] + b', "correct": [false, true]}', "repeated key"),
    "a lone surrogate": (changed(responses=["3 \ud800", "4"]), "half a character in 'responses'"),
    "a lone surrogate in the prompt": (changed(prompt="\udfff"), "half a character in 'prompt'"),
    "deep brackets": (b'{"prompt": ' + b"[" * 100_000, "JSON out of bounds"),
    "an absurd integer": (b'{"prompt": ' + b"9" * 5000 + b"}", "JSON out of bounds"),
    "NUL": (changed(responses=["3\0", "4"]), "NUL character in 'responses'"),
    "a NUL byte": (b'{"prompt": "\0"}', "NUL byte"),
    "no UTF-8": (b'{"prompt": "\xe9"}', "not UTF-8"),
    "an empty prompt": (changed(prompt=" "), "empty text in 'prompt'"),
    "an empty response": (changed(responses=["3", ""]), "empty text in 'responses'"),
    "an invisible response": (changed(responses=["3", "\u200b\ufeff\u00a0"]), "empty text in 'responses'"),
    "no responses": (changed(responses=[], correct=[]), "empty list in 'responses'"),
    "an outcome too few": (changed(correct=[True]), "2 responses and 1 outcomes"),
    "a text instead of a list": (changed(responses="34"), "wrong type in 'responses'"),
    "one outcome for all": (changed(correct=True), "wrong type in 'correct'"),
    "a number as response": (changed(responses=[3, 4]), "wrong type in 'responses'"),
    "a share as outcome": (changed(correct=[0.5, 0]), "neither true nor false; found 0.5; give true or false"),
    "a missing outcome": (changed(correct=[None, 0]), "neither true nor false; found null"),
    "a word as outcome": (changed(correct=["yes", "no"]), "neither true nor false; found 'yes'"),
    "not a number": (b'{"prompt": "a", "responses": ["3"], "correct": [NaN]}', "neither true nor false; found nan"),
    "a misspelt key": ({"prompt": "a", "response": ["3"], "correct": [1]}, "rename 'response' to 'responses'"),
    "one response a row": (
        {"prompt": "a", "response": "3", "correct": True},
        "write all responses to a prompt into one",
    ),
    "a context": (changed(context=["3 is a number."]), "text in 'context' would be lost"),
    "null": (changed(prompt=None), "'prompt' is null"),
    "no object": ([1], "not a JSON object"),
    "a prompt that ends with a reply": (changed(prompt=TALK[:2]), "roles do not alternate in 'prompt'"),
    "a tool call": (changed(prompt=[{"role": "tool", "content": "3"}]), "tool call in 'prompt'"),
    "right and wrong": (changed(responses=["3", "4", "3 "], correct=[1, 0, 0]), "the same response is right and wrong"),
    "wrong, right before": (
        GOOD | {"correct": [False, False]},
        "contradicts an earlier row; line 1 calls the response",
    ),
    "right, wrong before": (GOOD | {"prompt": " 1 + 1", "correct": [True, True]}, "'3' wrong; correct one of them"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_row_is_named_and_costs_no_other(fault, tmp_path):
    row, said = FAULTS[fault]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join([raw(GOOD), raw(row), raw(changed(prompt="1 + 3", responses=["4", "5"]))]))
    frame, refused = load_outcomes(path)
    assert frame["response"].tolist() == ["2", "3", "4", "5"] and frame["prompt"].tolist() == [0, 0, 1, 1]
    assert len(refused) == 1 and refused[0].startswith("a.jsonl:2: ") and said in refused[0]


@pytest.mark.parametrize("correct", OUTCOMES)
@pytest.mark.parametrize("prompt", ["1 + 1", TALK, [{"role": "system", "content": ""}, *TALK]])
def test_every_form_of_prompt_and_outcome_is_read(prompt, correct, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": prompt, "responses": ["2", "3"], "correct": correct}))
    frame, refused = load_outcomes(path)
    talk = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    assert refused == [] and frame["correct"].tolist() == [True, False] and frame["correct"].dtype == bool
    assert frame["conversation"].tolist() == [[*talk, {"role": "assistant", "content": text}] for text in ("2", "3")]


ABOUT = {"answer": "18", "gold_solution": "1 and 1 is 2.", "subject": "Algebra", "id": "a-1", "generator": ["a", "b"]}


def test_references_are_no_part_of_the_prompt_and_other_text_only_by_name(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(GOOD | ABOUT))
    plain, refused = load_outcomes(path)
    assert len(plain) == 2 and refused == []
    path.write_text(json.dumps(GOOD | {"context": "Numbers are even."}))
    with pytest.raises(ValueError, match=r"text in 'context' would be lost.*ignore=\('context',\)"):
        load_outcomes(path)
    assert load_outcomes(path, ignore=("context",))[0].equals(plain)


def test_parquet_gives_the_same_as_lines(tmp_path):
    rows = [GOOD | {"id": 1, "answer": "2", "system": ""}, changed(id=2, answer="3", system=None)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines, table = (load_outcomes(tmp_path / name)[0] for name in ("a.jsonl", "a.parquet"))
    assert lines.equals(table) and len(table) == 4


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_one_error_of_the_file(encoding, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(map(json.dumps, [GOOD, changed()])).encode(encoding))
    with pytest.raises(ValueError, match="a.jsonl is UTF-.*, not UTF-8; convert it"):
        load_outcomes(path)


def test_a_file_without_a_row_and_no_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="a.jsonl has no usable row; check that"):
        load_outcomes(tmp_path / "a.jsonl")
    with pytest.raises(FileNotFoundError):
        load_outcomes(tmp_path / "b.jsonl")


def test_what_belongs_to_the_prompt_is_part_of_it(tmp_path):
    row = changed(system="Add.", history=[["1 + 1?", "2"]], models=["a", "b"])
    frame, report = load_outcomes(write(tmp_path / "a.jsonl", row))
    roles = [message["role"] for message in frame["conversation"][0]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
