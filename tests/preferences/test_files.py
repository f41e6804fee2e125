"""Files that are bad as a whole, arrays, gzip and Parquet: the same rows by every way in."""

import gzip
import json
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset
from faults import FAULTS
from rows import as_line, good

from icrm_lib.preferences import load_preferences, preference_rows


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
    "UTF-16 without a mark": (
        "a.jsonl",
        TEXT.encode("utf-16-be"),
        "is UTF-16-BE, not UTF-8; .*iconv -f UTF-16BE -t UTF-8$",
    ),
    "UTF-32": ("a.jsonl", TEXT.encode("utf-32"), "a.jsonl is UTF-32, not UTF-8; convert it"),
    "UTF-16 array": ("a.json", f"[{json.dumps(good())}]".encode("utf-16"), "a.json is UTF-16, not UTF-8"),
    "UTF-16 in gzip": (
        "a.jsonl.gz",
        gzip.compress(TEXT.encode("utf-16")),
        "is UTF-16, not UTF-8; .*once it is unpacked",
    ),
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
        "wrong type in 'prompt'",
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


def test_a_first_line_with_a_bracket_does_not_make_an_array_of_the_file(tmp_path):
    for first in (b"[1, 2]", b"[", b"[" * 100_000, b'["a", {'):
        (tmp_path / "a.jsonl").write_bytes(first + b"\n" + lines_of(2))
        dataset, report = load_preferences(tmp_path / "a.jsonl")
        assert dataset["line"][:] == [2, 3] and [r.line for r in report.refusals] == [1]


ARRAYS = {name: row for name, (row, _, _) in FAULTS.items() if not isinstance(row, bytes)}
KEYS = {"prompt", "chosen", "rejected"}
COLUMNS = {  # rows that fit into columns of texts
    name: row
    for name, row in ARRAYS.items()
    if all(isinstance(row.get(key), str | None) for key in KEYS) and set(row) <= KEYS and "surrogate" not in name
}


def between(rows):
    return [good(), *(row for bad in rows for row in (bad, good()))]


@pytest.mark.parametrize("file", ["a.json", "a.json.gz", "a.jsonl.gz"])
def test_the_same_rows_in_an_array_and_compressed(file, tmp_path):
    rows = list(map(as_line, between(ARRAYS.values())))
    raw = b"[" + b",\n".join(rows) + b"]" if ".json" in Path(file).suffixes else b"\n".join(rows)
    (tmp_path / file).write_bytes(gzip.compress(raw) if file.endswith(".gz") else raw)
    dataset, report = load_preferences(tmp_path / file)
    assert report.kept == len(ARRAYS) + 1 and dataset["line"][:] == list(range(1, 2 * len(ARRAYS) + 2, 2))
    for line, (refusal, name) in enumerate(zip(report.refusals, ARRAYS, strict=True), 1):
        assert refusal.line == 2 * line
        assert refusal.reason.startswith(FAULTS[name][1]) and FAULTS[name][2] in refusal.remedy
    with pytest.raises(ValueError, match=f"^{file}:2: half a character"):
        load_preferences(tmp_path / file, strict=True)


@pytest.mark.parametrize("way", ["parquet", "dataset"])
def test_the_same_rows_in_columns(way, tmp_path):
    rows = [row for row in between(COLUMNS.values())]
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
    assert str(report.refusals[0]).startswith(f"{'a.parquet' if way == 'parquet' else 'data set'}:2: ")


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
