"""Every kind of bad data by name: what is said about it, at which line, and that the rows around it stay."""

import gzip
import json
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, disable_progress_bars
from test_preferences import as_line, assistant, good, user

from icrm_lib.benchmarks import items as benchmark_data
from icrm_lib.preferences import load_preferences, preference_rows
from icrm_lib.training.trainer import ICRMConfig, ICRMTrainer

disable_progress_bars()

WHOLE = [user("q"), assistant("a")]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


def turns(*roles):
    return [{"role": role, "content": f"text {i}"} for i, role in enumerate(roles)]


def sides(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def without(key, **others):
    return {name: value for name, value in good(**others).items() if name != key}


def with_number(text, key="margin"):
    return as_line(good())[:-1] + f', "{key}": {text}}}'.encode()


# name of the fault: what stands in the line, the reason, a word of the remedy
SYNTAX = {  # every kind has this reason
    "no comma": (b'{"prompt": "a", "chosen": "b" "rejected": "c"}', "Expecting ',' delimiter at column 31"),
    "comma before the end": (b'{"prompt": "a", "chosen": "b", "rejected": "c",}', "column"),
    "comma after the object": (as_line(good()) + b",", "Extra data"),
    "two objects on a line": (as_line(good()) * 2, "Extra data"),
    "no colon": (b'{"prompt" "a"}', "Expecting ':' delimiter"),
    "single quotes": (b"{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}", "double quotes"),
    "no quotes": (b"{prompt: 1}", "double quotes"),
    "Python's words": (b'{"prompt": None}', "Expecting value"),
    "a comment": (b"// pairs", "Expecting value"),
    "a bare text": (b"Blue.", "Expecting value"),
    "a table": (b"prompt,chosen,rejected", "Expecting value"),
    "cut in a text": (as_line(good())[:-6], "Unterminated string"),
    "cut behind a key": (b'{"prompt": "a", "chosen":', "Expecting value"),
    "cut before the last bracket": (as_line(good())[:-1], "Expecting ',' delimiter"),
    "a bracket alone": (b"}", "Expecting value"),
    "a tab inside a text": (b'{"prompt": "a\tb"}', "Invalid control character at column"),
    "an unknown escape": (rb'{"prompt": "\x41"}', "escape"),
    "half an escape": (rb'{"prompt": "\u12"}', "escape"),
    "a number with zeros in front": (b'{"margin": 007}', "delimiter"),
    "no-break space": ("\u00a0".encode(), "Expecting value"),
    "zero width alone on a line": ("\u200b".encode(), "Expecting value"),
}
FAULTS = {name: (raw, "JSON syntax error", word) for name, (raw, word) in SYNTAX.items()} | {
    # bytes and bounds
    "invalid UTF-8": (b'{"prompt": "a", "chosen": "caf\xe9", "rejected": "c"}', "not UTF-8", "0xe9"),
    "overlong UTF-8": (b'{"prompt": "\xc0\xaf"}', "not UTF-8", "0xc0"),
    "NUL byte": (b'{"prompt": "a\0"}', "NUL byte", "at offset 13"),
    "line of NUL bytes": (b"\0" * 64, "NUL byte", "write it again"),
    "absurd nesting of arrays": (b"[" * 100_000, "JSON out of bounds", "simplify"),
    "absurd nesting of objects": (b'{"a":' * 100_000, "JSON out of bounds", "simplify"),
    "absurd nesting, closed": (with_number("[" * 100_000 + "]" * 100_000, "x"), "JSON out of bounds", "brackets"),
    "absurd integer": (with_number("9" * 5000), "JSON out of bounds", "thousands of digits"),
    "absurd integer in another key": (with_number("9" * 5000, "x"), "JSON out of bounds", "simplify"),
    "key twice": (b'{"prompt": "a", "chosen": "b", "chosen": "d", "rejected": "c"}', "repeated key", "'chosen'"),
    "lone surrogate": (good(chosen="\ud800x"), "half a character in 'chosen'", "U+D800"),
    "lone surrogate in the prompt": (good(prompt="x\udc00"), "half a character in 'prompt'", "U+DC00 at 1"),
    "lone surrogate in the source": (good(source="\udfff"), "half a character in 'source'", "U+DFFF"),
    "NUL": (good(rejected="a\0b"), "NUL character in 'rejected'", "at 1"),
    # not an object, keys
    "array": (b"[1, 2]", "not a JSON object", "array"),
    "null": (b"null", "not a JSON object", "null"),
    "number": (b"3", "not a JSON object", "number"),
    "text": (b'"Blue."', "not a JSON object", "str"),
    "empty object": (b"{}", "missing key 'chosen'", "keys here: none"),
    "missing key": (without("rejected", xyz="c"), "missing key 'rejected'", "keys here: prompt, chosen, xyz"),
    "missing prompt": (sides([assistant("a")], [assistant("b")]), "missing key 'prompt'", "add it"),
    "missing beside its rating": (without("chosen", chosen_rating=3), "missing key 'chosen'", "add it"),
    "misspelt key": (without("chosen", choosen="b"), "missing key 'chosen'", "rename 'choosen' to 'chosen'"),
    "misspelt key, other case": (without("chosen", CHOSEN="b"), "missing key 'chosen'", "rename 'CHOSEN' to"),
    "misspelt key, a space": (without("chosen", **{"chosen ": "b"}), "missing key 'chosen'", "rename 'chosen '"),
    "misspelt key, shortened": (without("rejected", reject="b"), "missing key 'rejected'", "rename 'reject' to"),
    "misspelt prompt": (without("prompt", Prompt="b"), "missing key 'prompt'", "rename 'Prompt'"),
    "key that cannot be printed": (without("prompt", **{"\ud800": 1}), "missing key 'prompt'", r"\ud800"),
    # null, wrong types
    "null chosen": (good(chosen=None), "'chosen' is null", "drop"),
    "null rejected": (good(rejected=None), "'rejected' is null", "drop"),
    "number for text": (good(chosen=7), "wrong type in 'chosen'", "number"),
    "boolean for text": (good(prompt=True), "wrong type in 'prompt'", "boolean"),
    "object for text": (good(rejected={"text": "no"}), "wrong type in 'rejected'", "object"),
    "list for text": (good(chosen=["Blue."]), "wrong type in 'chosen'", "str"),
    "lists of different lengths": (good(chosen=["a", "b"], rejected=["c"]), "wrong type in 'chosen'", "objects"),
    "message without content": (good(chosen=[{"role": "assistant"}]), "message without text in 'chosen'", "'content'"),
    "message with content null": (good(chosen=[assistant(None)]), "message without text in 'chosen'", "null"),
    "message with content in parts": (
        good(prompt=[user([{"type": "text"}])]),
        "message without text in 'prompt'",
        "arr",
    ),
    "message with a number as role": (good(prompt=[{"role": 1, "content": "x"}]), "message without text", "number"),
    # empty
    "empty chosen": (good(chosen=""), "empty text in 'chosen'", "fill"),
    "empty rejected": (good(rejected=""), "empty text in 'rejected'", "fill"),
    "blank": (good(rejected=" \n\u00a0\u3000"), "empty text in 'rejected'", "fill"),
    "blank prompt": (good(prompt="\t"), "empty text in 'prompt'", "fill"),
    "zero width": (good(chosen="\u200b\ufeff\u2060"), "empty text in 'chosen'", r"'\u200b\ufeff\u2060'"),
    "zero width joiners": (good(chosen=" \u200c\u200d\n"), "empty text in 'chosen'", "fill"),
    "invisible fillers": (good(chosen="\u3164\u2800\u00ad"), "empty text in 'chosen'", "fill"),
    "marks of direction": (good(prompt="\u202e\u200f"), "empty text in 'prompt'", "fill"),
    "empty turn in between": (good(prompt=[user("q"), assistant(""), user("r")]), "empty text in 'prompt'", "fill"),
    "empty conversation as prompt": (good(prompt=[]), "empty conversation in 'prompt'", "messages"),
    "empty conversation as reply": (good(chosen=[]), "empty conversation in 'chosen'", "messages"),
    # nothing is preferred
    "identical": (good(chosen="Egg."), "chosen equals rejected", "drop"),
    "identical but for white space around": (good(chosen="\nEgg. "), "chosen equals rejected", "drop"),
    "identical but for line ends": (good(chosen="a\r\nb", rejected="a\nb"), "chosen equals rejected", "drop"),
    "identical after NFC": (good(chosen="caf\u00e9", rejected=" cafe\u0301\n"), "chosen equals rejected", "drop"),
    "identical after NFKC": (good(chosen="ﬁne １２…", rejected="fine 12..."), "chosen equals rejected", "drop"),
    "identical but for zero width": (good(chosen="Eg\u200bg."), "chosen equals rejected", "drop"),
    # the two sides, turns and roles
    "prompts differ": (sides(WHOLE, [user("r"), assistant("b")]), "chosen and rejected have different prompts", "'q'"),
    "conversations of different lengths": (
        sides([*WHOLE, user("x"), assistant("y")], [user("q"), assistant("z")]),
        "chosen and rejected have different prompts",
        "3 turns",
    ),
    "prompt beside another one": (
        {"prompt": "p", **sides(WHOLE, [user("q"), assistant("b")])},
        "'chosen' does not continue the prompt",
        "'p'",
    ),
    "no reply": (sides(WHOLE[:1], WHOLE), "'chosen' does not end with an assistant turn", "'user'"),
    "two user turns in a row": (good(prompt=turns("user", "user")), "roles do not alternate in 'chosen'", "user, user"),
    "two assistant turns in a row": (
        good(prompt=turns("user", "assistant")),
        "roles do not alternate in 'chosen'",
        "assistant, assistant",
    ),
    "system turn in between": (good(prompt=turns("user", "assistant", "system")), "roles do not alternate", "system"),
    "system turn alone": (good(prompt=turns("system")), "roles do not alternate in 'chosen'", "system, assistant"),
    "unknown role": (good(prompt=turns("human")), "unknown role in 'chosen'", "'human'"),
    # other forms
    "ShareGPT with replies": (
        {"conversations": SHAREGPT[:1], **sides(SHAREGPT[1], {"from": "gpt", "value": "b"})},
        "ShareGPT keys in 'chosen'",
        "rename 'conversations' to 'prompt', 'from' to 'role' (human: user, gpt: assistant)",
    ),
    "ShareGPT in lists": (sides(SHAREGPT, SHAREGPT), "ShareGPT keys in 'chosen'", "'value' to 'content'"),
    "ShareGPT without replies": ({"conversations": SHAREGPT}, "missing key 'chosen'", "ShareGPT"),
    "ShareGPT prompt": (without("prompt", conversations=SHAREGPT[:1]), "missing key 'prompt'", "ShareGPT"),
    "tool call": (sides([user("q"), CALL, assistant("x")], WHOLE), "tool call in 'chosen'", "'tool_calls'"),
    "tool call beside text": (sides(WHOLE, [user("q"), {**CALL, "content": "b"}]), "tool call in 'rejected'", "drop"),
    "tool turn": (good(prompt=turns("user", "tool")), "tool call in 'prompt'", "'role tool'"),
    "function turn": (good(prompt=turns("user", "function")), "tool call in 'prompt'", "'role function'"),
    "function call": (good(chosen=[{**assistant("a"), "function_call": {"name": "f"}}]), "tool call", "function_call"),
    # ratings
    "rating NaN": (with_number("NaN"), "'margin' is not finite", "nan"),
    "rating infinite": (with_number("-Infinity"), "'margin' is not finite", "-inf"),
    "rating beyond floats": (with_number("1e999"), "'margin' is not finite", "inf"),
    "rating of 400 digits": (good(chosen_score=1, rejected_score=10**400), "'rejected_score' is not finite", "1000"),
    "rating NaN on one side": (with_number("NaN", "chosen_rating"), "'chosen_rating' is not finite", "leave"),
    "difference of ratings infinite": (good(score_chosen=1.7e308, score_rejected=-1.7e308), "margin is not", "inf"),
    "rating beyond float32": (good(margin=1e300), "margin is not finite in float32", "give smaller numbers"),
    "rating as text": (good(margin="3"), "wrong type in 'margin'", "str '3'"),
    "rating as boolean": (good(margin=True), "wrong type in 'margin'", "boolean"),
    "rating as boolean text": (good(margin="true"), "wrong type in 'margin'", "str 'true'; give a number"),
    "ratings as boolean text": (good(chosen_rating="true", rejected_rating="false"), "wrong type", "give a number"),
    "rating as list": (good(chosen_rating=[5], rejected_rating=[1]), "wrong type in 'chosen_rating'", "array"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_between_good_rows(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row, reason, word = FAULTS[name]
    Path("a.jsonl").write_bytes(b"\n".join([as_line(good()), b"", as_line(row), as_line(good(prompt="Why?"))]))
    dataset, report = load_preferences("a.jsonl")
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


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_usable_is_an_error_with_the_report(name, tmp_path):
    row, reason, _ = FAULTS[name]
    (tmp_path / "bad.jsonl").write_bytes(as_line(good(chosen="")) + b"\n" + as_line(row))
    with pytest.raises(ValueError) as error:
        load_preferences(tmp_path / "bad.jsonl")
    assert "bad.jsonl: 0 kept, 2 refused" in str(error.value) and reason in str(error.value)


# Files that are as a whole not what their name says: name of the file, its bytes, what the message says -----


def lines_of(count, **changes):
    return b"\n".join(as_line(good(prompt=f"Why {i}?", **changes)) for i in range(count)) + b"\n"


def table(**columns):
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


TEXT = lines_of(3).decode()
PACKED = gzip.compress(lines_of(3000), mtime=0)
PARQUET = table(**{key: [f"{key} {i * 7919}" for i in range(3000)] for key in good()})
FILES = {
    "empty file": ("a.jsonl", b"", "a.jsonl: 0 kept, 0 refused\n  it has no rows; check"),
    "blank lines alone": ("a.jsonl", b"\xef\xbb\xbf\n \r\n\n", "it has no rows; check"),
    "empty array": ("a.json", b"[ ]", "a.json: 0 kept, 0 refused\n  it has no rows; check"),
    "UTF-16": ("a.jsonl", TEXT.encode("utf-16"), "a.jsonl is UTF-16, not UTF-8; convert it"),
    "UTF-16 without a mark": ("a.jsonl", TEXT.encode("utf-16-be"), "a.jsonl is UTF-16-BE, not UTF-8; convert it"),
    "UTF-32": ("a.jsonl", TEXT.encode("utf-32"), "a.jsonl is UTF-32, not UTF-8; convert it"),
    "UTF-16 array": ("a.json", f"[{json.dumps(good())}]".encode("utf-16"), "a.json is UTF-16, not UTF-8"),
    "UTF-16 in gzip": ("a.jsonl.gz", gzip.compress(TEXT.encode("utf-16")), "is UTF-16, not UTF-8; convert it"),
    "gzip without its name": ("a.jsonl", PACKED, "a.jsonl is compressed by gzip; add .gz to its name"),
    "Parquet without its name": ("a.jsonl", PARQUET, "a.jsonl is a Parquet file; name it .parquet"),
    "zip": ("a.jsonl", b"PK\x03\x04....", "a.jsonl is a zip archive; unpack it"),
    "Git LFS pointer": ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "plain text called gzip": ("a.jsonl.gz", lines_of(3), "no whole gzip file: Not a gzipped file.*drop .gz"),
    "truncated gzip": ("a.jsonl.gz", PACKED[:-30], "a.jsonl.gz is no whole gzip file.*copy or compress it again"),
    "damaged gzip": ("a.jsonl.gz", PACKED[:99] + b"\0\1\2" + PACKED[102:], "no whole gzip file.*copy or compress"),
    "gzip with a wrong checksum": ("a.jsonl.gz", PACKED[:-8] + bytes(8), "no whole gzip file: CRC"),
    "empty Parquet file": ("a.parquet", b"", "a.parquet is no whole Parquet file.*download or write it again"),
    "no Parquet file": ("a.parquet", lines_of(3), "a.parquet is no whole Parquet file.*download or write it again"),
    "truncated Parquet file": ("a.parquet", PARQUET[:-9], "a.parquet is no whole Parquet file"),
    "damaged Parquet file": ("a.parquet", PARQUET[:200] + bytes(2000) + PARQUET[2200:], "no whole Parquet file"),
    "Parquet file without rows": ("a.parquet", table(prompt=pa.array([], pa.string())), "it has no rows"),
    "Parquet file with numbers": (
        "a.parquet",
        table(prompt=["p"], chosen=[1], rejected=[2.5]),
        "wrong type in 'chosen' .line 1.\n.*found number",
    ),
    "Parquet file with bytes": (
        "a.parquet",
        table(prompt=["p"], chosen=[b"x"], rejected=[b"y"]),
        "wrong type in 'chosen' .line 1.\n.*found bytes",
    ),
    "columns instead of rows": (
        "a.json",
        json.dumps({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c"]}).encode(),
        "wrong type in 'chosen'",
    ),
    "another kind of file": ("a.csv", b"prompt,chosen,rejected\n", r"cannot read 'a.csv': '.csv' is none of .jsonl"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_bad_as_a_whole_is_one_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, raw, message = FILES[name]
    Path(file).write_bytes(raw)
    for strict in (False, True):
        with pytest.raises(ValueError) as error:
            load_preferences(file, strict=strict)
        assert len(str(error.value)) < 600 and file in str(error.value)
        assert strict or re.search(message, str(error.value))


def test_a_directory_a_missing_file_and_impossible_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.jsonl").mkdir()
    with pytest.raises(IsADirectoryError, match="'folder.jsonl' is a directory; name one"):
        load_preferences("folder.jsonl")
    with pytest.raises(IsADirectoryError, match="'' is a directory"):
        load_preferences("")
    for path in (
        "missing.jsonl",
        "~nobody-here/a.jsonl",
        "a\0b.jsonl",
        "x" * 5000 + ".jsonl",
        as_line(good()).decode(),
    ):
        with pytest.raises(FileNotFoundError, match="check the spelling") as error:
            load_preferences(path)
        assert len(str(error.value)) < 500


# What looks odd and is good ---------------------------------------------------------------------------------

ODD = {  # a row, or its bytes, and the reply that must come out
    "U+2028 and U+0085 in a text": (json.dumps(good(chosen="a\u2028b\x85c"), ensure_ascii=False), "a\u2028b\x85c"),
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
    "ShareGPT's key beside a pair": (good(conversations=SHAREGPT), "Blue."),
    "large integer in another key": (good(x=10**4000), "Blue."),
    "nesting in another key": (with_number("[" * 200 + "]" * 200, "x"), "Blue."),
    "half a pair of ratings": (good(chosen_rating=3, rejected_rating=None), "Blue."),
    "empty system turn": (good(prompt=[{"role": "system", "content": ""}, user("q")]), "Blue."),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_good_rows_are_kept_as_they_are(name, tmp_path):
    row, reply = ODD[name]
    (tmp_path / "a.jsonl").write_bytes(row.encode() if isinstance(row, str) else as_line(row))
    dataset, report = load_preferences(tmp_path / "a.jsonl", strict=True)
    assert dataset["chosen"][:] == [reply] and (report.kept, report.refused) == (1, 0)


def test_duplicate_ids_and_contradicting_rows_are_kept_and_counted(tmp_path):
    first, second = good(id=7), good(id=7, prompt="Why?")
    opposite = good(id="x", chosen="Egg.", rejected="Blue.")
    lines = [first, second, opposite, good(uid=7), good(id=None)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(as_line, lines)))
    dataset, report = load_preferences(tmp_path / "a.jsonl", strict=True)
    assert dataset["line"][:] == [1, 2, 3, 4, 5]
    expected = [
        "2 rows repeat an earlier row (kept)",
        "3 rows prefer the opposite of an earlier row (kept)",
        "2 rows have the id of an earlier row (ids decide nothing)",
    ]
    assert report.notes == expected
    _, report = preference_rows(Dataset.from_list([good(id=1), good(id=1, prompt="Why?")]))
    assert report.notes == [expected[2].replace("2 rows", "1 rows")]


def test_a_first_line_with_a_bracket_does_not_make_an_array_of_the_file(tmp_path):
    for first in (b"[1, 2]", b"[", b"[" * 100_000, b'["a", {'):
        (tmp_path / "a.jsonl").write_bytes(first + b"\n" + lines_of(2))
        dataset, report = load_preferences(tmp_path / "a.jsonl")
        assert dataset["line"][:] == [2, 3] and [r.line for r in report.refusals] == [1]


# Other ways in ----------------------------------------------------------------------------------------------

ARRAYS = {name: row for name, (row, _, _) in FAULTS.items() if not isinstance(row, bytes)}
KEYS = {"prompt", "chosen", "rejected"}
COLUMNS = {  # rows that fit into columns of texts
    name: row
    for name, row in ARRAYS.items()
    if all(isinstance(row.get(key), str | None) for key in KEYS) and set(row) <= KEYS and "surrogate" not in name
} | {"rating NaN": good(margin=float("nan")), "rating infinite": good(margin=float("inf"))}


def check(report, names, reasons_of, first=2):
    assert [r.line for r in report.refusals] == [first + 2 * i for i in range(len(names))]
    for refusal, name in zip(report.refusals, names, strict=True):
        assert reasons_of(refusal.reason).startswith(FAULTS[name][1]) and FAULTS[name][2] in refusal.remedy


def between(rows):
    return [good(), *(row for bad in rows for row in (bad, good()))]


@pytest.mark.parametrize("file", ["a.json", "a.json.gz", "a.jsonl.gz"])
def test_the_same_rows_in_an_array_and_compressed(file, tmp_path):
    rows = list(map(as_line, between(ARRAYS.values())))
    raw = b"[" + b",\n".join(rows) + b"]" if ".json" in Path(file).suffixes else b"\n".join(rows)
    (tmp_path / file).write_bytes(gzip.compress(raw) if file.endswith(".gz") else raw)
    dataset, report = load_preferences(tmp_path / file)
    assert report.kept == len(ARRAYS) + 1 and dataset["line"][:] == list(range(1, 2 * len(ARRAYS) + 2, 2))
    check(report, ARRAYS, str)
    with pytest.raises(ValueError, match=f"^{file}:2: half a character"):
        load_preferences(tmp_path / file, strict=True)


@pytest.mark.parametrize("way", ["parquet", "dataset"])
def test_the_same_rows_in_columns(way, tmp_path):
    rows = [{"margin": 1.0} | row for row in between(COLUMNS.values())]
    if way == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        dataset, report = load_preferences(tmp_path / "a.parquet")
    else:
        dataset, report = preference_rows(Dataset.from_list(rows).with_format("numpy"))
    assert report.kept == len(COLUMNS) + 1 and dataset["line"][:] == list(range(1, 2 * len(COLUMNS) + 2, 2))
    # A column cannot lack a key: what is missing is null.
    assert len(report.refusals) == len(COLUMNS) > 15
    for refusal, name in zip(report.refusals, COLUMNS, strict=True):
        reason = FAULTS[name][1]
        assert refusal.reason == (f"{reason.removeprefix('missing key ')} is null" if "missing" in reason else reason)
    if way == "dataset":
        with pytest.raises(ValueError, match="^data set:2: "):
            preference_rows(Dataset.from_list(rows), strict=True)


def test_parquet_columns_of_other_types(tmp_path):
    texts = pa.array([b"a\xff", b"b", b"c"], pa.binary()).view(pa.string())
    columns = {
        "prompt": texts,
        "chosen": pa.array(["x", "y", "x"]).dictionary_encode(),
        "rejected": pa.array(["u", "v", None], pa.large_string()),
        "margin": pa.array([Decimal("0.5")] * 3),
        "when": pa.array([0, 2**62, 0], pa.timestamp("us")),
    }
    (tmp_path / "a.parquet").write_bytes(table(**{key: column[:1] for key, column in columns.items()}))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_preferences(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(table(**columns, more=[1, 2, 3]))
    with pytest.raises(ValueError, match="0 kept, 3 refused"):
        load_preferences(tmp_path / "a.parquet")
    del columns["when"]
    (tmp_path / "a.parquet").write_bytes(table(**columns))
    dataset, report = load_preferences(tmp_path / "a.parquet")
    assert dataset["line"][:] == [2] and dataset["margin"][:] == [0.5]
    assert [(r.line, r.reason) for r in report.refusals] == [(1, "not UTF-8"), (3, "'rejected' is null")]


@pytest.mark.parametrize(
    ("end", "reason", "place"),
    [
        (b',\n{"prompt": }]', "JSON syntax error", "line 2, column 12"),
        (b',\n{"prompt": "cut', "JSON syntax error", "line 2, column 12"),
        (b",]", "JSON syntax error", "Expecting value"),
        (b"", "JSON syntax error", "Expecting ',' or ']'"),
        (b"] more", "JSON syntax error", "Extra data"),
        (b"," + b"[" * 100_000, "JSON out of bounds", "brackets"),
        (b"," + b"9" * 5000 + b"]", "JSON out of bounds", "digits"),
    ],
)
def test_an_array_that_breaks_off_gives_the_rows_before(end, reason, place, tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" + as_line(good()) + end)
    dataset, report = load_preferences(tmp_path / "a.json")
    (refusal,) = report.refusals
    assert dataset["line"][:] == [1] and (refusal.line, refusal.reason) == (2, reason)
    assert place in refusal.remedy and "the rows from here on are not read" in refusal.remedy


def test_bad_bytes_and_repeated_keys_inside_an_array_cost_their_row_alone(tmp_path):
    bad = [b'{"prompt": "a", "chosen": "caf\xe9", "rejected": "c"}', b'{"prompt": "a", "prompt": "b"}']
    (tmp_path / "a.json").write_bytes(b"[\n" + b",\n".join([as_line(good()), *bad, as_line(good())]) + b"\n]\n")
    dataset, report = load_preferences(tmp_path / "a.json")
    assert dataset["line"][:] == [1, 4]
    assert [(r.line, r.reason) for r in report.refusals] == [(2, "not UTF-8"), (3, "repeated key")]
    assert "byte 0xe9 in line 3" in report.refusals[0].remedy


def test_the_trainer_reports_bad_rows_and_special_tokens_stay_text(base_model, tokenizer, tmp_path, caplog):
    closing = tokenizer.eos_token
    texts = [f"yes {closing} no", "yes", "\u200b", "yes", "no"]
    rows = [good(chosen=text, rejected="no") for text in texts]
    arguments = {"consistency_weight": 0.1, "weighting": "uniform", "sft_weight": 0.0, "max_length": 64}
    options = {"report_to": "none", "bf16": False, "use_cpu": True, "gradient_checkpointing": False}
    with caplog.at_level("WARNING", "icrm_lib.training.trainer"):
        trainer = ICRMTrainer(
            str(base_model),
            ICRMConfig(output_dir=str(tmp_path), **arguments, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
    assert len(trainer.train_dataset) == 3
    assert "empty text in 'chosen' (line 3)" in caplog.text and "chosen equals rejected (line 5)" in caplog.text
    assert len({ids.count(tokenizer.eos_token_id) for ids in trainer.train_dataset["chosen_ids"]}) == 1
    batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset)))
    sizes = [len(row["chosen_ids"]) - row["prompt_length"] for row in trainer.train_dataset]
    assert batch["response_mask"].sum(1)[:3].tolist() == sizes


@pytest.mark.parametrize("row", [b'{"id": ' * 100_000, b'{"id": ' + b"9" * 5000 + b"}"])
def test_benchmark_files_with_absurd_rows_are_named(row, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n" + row)
    with pytest.raises(ValueError, match="^a.jsonl:2: JSON out of bounds; found .*thousands of"):
        benchmark_data.load_rmbench(tmp_path / "a.jsonl")
