"""Whatever stands in a file: a clear refusal or exactly what was given, and nothing else."""

import json
import random
from collections import Counter

import numpy as np
import pytest
from fuzz import FUZZ, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import good, user

from icrm_lib.preferences import load_preferences, preference_rows

NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, True, "true", "5", float("nan"), float("inf")])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "tool", "human"]) | JSON,
        "content": TEXTS | JSON,
        "tool_calls": JSON,
        "from": TEXTS,
        "value": TEXTS,
    },
)
PLAIN = st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant"]), TEXTS)
SIDES = TEXTS | st.lists(PLAIN, max_size=3) | st.lists(MESSAGES, max_size=3) | JSON
RATINGS = ("margin", "chosen_rating", "rejected_rating", "chosen_score", "rejected_score")
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("prompt", "chosen", "rejected"), SIDES),
        **dict.fromkeys(RATINGS, NUMBERS | JSON),
        **dict.fromkeys(("id", "source", "choosen", "conversations"), JSON),
    },
)
VALID = st.builds(
    lambda prompt, texts: {"prompt": prompt, "chosen": texts[0], "rejected": texts[1]},
    st.text("abc é🥚", min_size=1, max_size=6).filter(str.strip),
    st.lists(st.text("abc é🥚", min_size=1, max_size=6), min_size=2, max_size=2),
)
ROWS = (VALID | NEARLY | JSON).map(lambda row: json.dumps(row).encode())
DAMAGED = st.builds(
    lambda raw, at, byte: raw[:at] + bytes([byte]) + raw[at + 1 :], ROWS, st.integers(0, 80), st.integers(0, 255)
)
CUT = st.builds(lambda raw, at: raw[:at], ROWS, st.integers(0, 80))
LINES = (ROWS | DAMAGED | CUT | st.binary(max_size=30)).map(lambda raw: raw.replace(b"\n", b""))


def load(path, **options):
    """Load a file: (data set or None, kept, refused), where only a ValueError with the report may be raised."""
    try:
        dataset, report = load_preferences(path, **options)
    except ValueError as error:
        first, _, table = str(error).partition("\n")
        assert type(error) is ValueError and first == "no usable preference pair:", error
        assert table.startswith(f"{path.name}: 0 kept, ")
        return None, 0, int(table.split()[3])
    str(report).encode()
    assert all(r.file == path.name and r.line > 0 and r.reason and ";" not in r.reason for r in report.refusals)
    return dataset, report.kept, report.refused


@given(lines=st.lists(LINES, max_size=8))
@settings(max_examples=300, **FUZZ)
def test_any_lines_are_kept_or_refused_one_by_one(lines, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + b"\n".join(lines))  # a file's first bytes may say what kind it is
    filled = [line for line, raw in enumerate(lines, 2) if raw.removeprefix(b"\xef\xbb\xbf").strip()]
    dataset, kept, refused = load(path)
    assert kept + refused == len(filled) + 1
    for row in dataset or ():
        source = json.loads(lines[row["line"] - 2].removeprefix(b"\xef\xbb\xbf"))
        for key in ("chosen", "rejected"):  # to the letter
            reply = source[key] if isinstance(source[key], str) else source[key][-1]["content"]
            assert row[key] == reply and reply.strip()
        assert row["chosen"] != row["rejected"] and row["prompt"][-1]["role"] == "user"
        assert row.get("margin") is None or np.isfinite(row["margin"])
    with pytest.raises(ValueError, match=r"^a.jsonl:1: missing key 'chosen'; "):
        load_preferences(path, strict=True)


@given(
    raw=st.binary(max_size=80) | st.lists(LINES, max_size=4).map(b"\n".join),
    file=st.sampled_from(["a.jsonl", "a.json"]),
)
@settings(max_examples=300, **FUZZ)
def test_any_bytes_raise_nothing_but_a_clear_error(raw, file, tmp_path):
    for path in (tmp_path / file, tmp_path / f"{file}.gz", tmp_path / "a.parquet"):
        path.write_bytes(raw)
        for strict in (False, True):
            try:
                load_preferences(path, strict=strict)
            except ValueError as error:
                assert type(error) is ValueError and path.name in str(error)


@given(rows=st.lists(VALID | NEARLY, min_size=1, max_size=6))
@settings(max_examples=150, **FUZZ)
def test_any_array_gives_what_its_lines_give(rows, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    array, lines = load(tmp_path / "a.json"), load(tmp_path / "a.jsonl")
    assert array[1:] == lines[1:] and sum(array[1:]) == len(rows)
    assert array[0] is None or array[0][:] == lines[0][:]
    if array[0] is not None:
        assert preference_rows(array[0])[0][:] == array[0][:]  # what was kept once is kept again


def garbage(rng):
    """A line that is never a good row; each kind with its reason."""
    reply = f"Blue {rng.random()}"
    row = good(prompt=f"Question {rng.random()}", chosen=reply)
    kinds = {
        "missing key 'chosen'": {"prompt": "a", "chosne": reply, "rejected": "b"},
        "'rejected' is null": row | {"rejected": None},
        "empty text in 'chosen'": row | {"chosen": rng.choice(["", " \n", "\u200b", "\u2060\ufeff"])},
        "chosen equals rejected": row | {"rejected": rng.choice([reply, f" {reply}\n", f"{reply}\u200b"])},
        "wrong type in 'rejected'": row | {"rejected": rng.choice([1, True, {}, 2.5])},
        "text in 'context' would be lost": row | {"context": f"Of {reply}"},
        "'prompt' has been through a chat template": row | {"prompt": f"<|im_start|>user\n{reply}"},
        "half a character in 'prompt'": row | {"prompt": f"{reply}\ud83e"},
        "NUL character in 'chosen'": row | {"chosen": f"{reply}\0"},
        "roles do not alternate in 'chosen'": row | {"prompt": [user(reply), user("b")]},
        "tool call in 'prompt'": row | {"prompt": [user(reply), {"role": "tool", "content": "b"}]},
        "unknown role in 'chosen'": row | {"prompt": [{"from": "wizard", "value": reply}]},
        "empty conversation in 'prompt'": row | {"prompt": []},
        "not a JSON object": rng.choice([None, 1, [], reply]),
        "JSON syntax error": json.dumps(row)[: -rng.randint(1, 20)].encode(),
        "not UTF-8": json.dumps(row).replace("Blue", "Bl\xfce").encode("latin-1"),
        "NUL byte": b"\0" * rng.randint(1, 9) + json.dumps(row).encode(),
        "JSON out of bounds": b'{"a": ' + rng.choice([b"[" * 5000, b"9" * 5000]),
    }
    reason = rng.choice(list(kinds))
    row = kinds[reason]
    return reason, row if isinstance(row, bytes) else json.dumps(row).encode()


def test_ten_thousand_rows_with_one_per_cent_garbage_give_exactly_the_counts(tmp_path):
    rng = random.Random(0)
    lines = [json.dumps(good(prompt=f"Question {i}")).encode() for i in range(10_000)]
    bad = {}
    for line in sorted(rng.sample(range(1, 10_001), 100)):
        bad[line], lines[line - 1] = garbage(rng)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    dataset, report = load_preferences(tmp_path / "a.jsonl")
    assert (report.kept, report.refused, len(dataset)) == (9900, 100, 9900) and report.notes == []
    assert report.counts() == Counter(bad.values()) and len(report.counts()) > 15
    assert {r.line: r.reason for r in report.refusals} == bad
    assert dataset["line"][:] == [line for line in range(1, 10_001) if line not in bad]
    assert dataset["prompt"][5000] == [user(f"Question {dataset['line'][5000] - 1}")]
    line, reason = min(bad.items())
    with pytest.raises(ValueError, match=f"^a.jsonl:{line}: {reason}; "):
        load_preferences(tmp_path / "a.jsonl", strict=True)


def mutated(rng, raw):
    """A line with bytes exchanged, left out, doubled or mixed up."""
    at, size = rng.randrange(len(raw)), rng.randint(1, 12)
    middle = raw[at : at + size]
    other = rng.choice(
        [b"", middle * 2, middle[::-1], rng.randbytes(size), rng.choice(b'{}[]",:\\').to_bytes(1, "big")]
    )
    return (raw[:at] + other + raw[at + size :]).replace(b"\n", b"") or b"x"


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_rows_of_any_kind(count, tmp_path):
    rng = random.Random(1)
    lines = []
    for i in range(count):
        raw = json.dumps(good(prompt=f"Question {i}", margin=i + 1)).encode() if i % 3 == 0 else garbage(rng)[1]
        lines.append(mutated(rng, raw) if i % 2 else raw)
    lines = [line if line.removeprefix(b"\xef\xbb\xbf").strip() else b"x" for line in lines]
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n' + b"\n".join(lines) + b"\n")
    dataset, report = load_preferences(tmp_path / "a.jsonl")
    ties = sum(report.dropped.values())
    assert report.kept + report.refused + ties == count + 1 and len(dataset) == report.kept > count // 6
    assert len({r.line for r in report.refusals} | set(dataset["line"])) == count + 1 - ties
    assert len(report.counts()) > 20 and len(str(report)) < 50_000  # reasons are few, however many rows
    str(report).encode()
