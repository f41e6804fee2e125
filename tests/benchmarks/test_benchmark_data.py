"""Benchmark items from small files of the official form: what is read, what is refused, and the way to a score."""

import hashlib
import json
import zlib

import huggingface_hub
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest

from icrm_lib import benchmarks
from icrm_lib.benchmarks import load_prior_sets, load_rewardbench, load_rewardbench2, load_rmbench, score_items
from icrm_lib.benchmarks.reward_bench import PRIOR, REWARDBENCH
from icrm_lib.benchmarks.reward_bench_2 import REWARDBENCH2
from icrm_lib.benchmarks.rm_bench import RMBENCH, RMBENCH_DOMAINS

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LOADERS = (load_rewardbench, load_prior_sets, load_rewardbench2, load_rmbench)


def pair(subset: str, number: int, **other) -> dict:
    """A row of RewardBench; in each subset the first pair is one that `length_score` gets wrong."""
    long, short = f"Twelve {subset} words about question {number}.", f"No {number}."
    chosen, rejected = (short, long) if number == 0 else (long, short)
    models = {"chosen_model": "a", "rejected_model": "b"}
    row = {"id": number, "prompt": f"Q {subset}", "chosen": chosen, "rejected": rejected, "subset": subset}
    return row | models | other


def several(subset: str, name: str, right: list[str], wrong: list[str], **other) -> dict:
    """A row of RewardBench 2."""
    row = {"id": name, "prompt": "Name one.", "chosen": right, "rejected": wrong, "num_correct": len(right)}
    extra = {"num_incorrect": len(wrong), "total_completions": len(right + wrong), "models": ["m"]}
    return row | extra | {"subset": subset, "additional_metadata": {"method": "x"}} | other


def styles(domain: str, number: int = 0, **other) -> dict:
    """A row of RM-Bench."""
    chosen, rejected = ([f"{side} {number}{'.' * k}" for k in range(3)] for side in ("Yes", "Never"))
    return {"id": f"{domain}-{number}", "prompt": "Q", "chosen": chosen, "rejected": rejected, "domain": domain} | other


FOUR = {"right": ["good"], "wrong": ["bad", "worse", "wrong"]}
PAIRS = [pair(subset, number) for subset in REWARDBENCH.rows for number in range(2 + (subset == "math-prm"))]
TIES = [several("Ties", "ref:1", ["red"], ["seven"]), several("Ties", "tied:1", ["red", "blue"], ["eight"])]
SEVERAL = [several(domain, f"{i}", **FOUR) for i, domain in enumerate(REWARDBENCH2.rows) if domain != "Ties"] + TIES
STYLES = [styles(domain, number) for domain in RMBENCH.rows for number in range(2)]


def save(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    else:
        path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def length_score(conversations):
    return np.array([len(conversation[-1]["content"]) for conversation in conversations], dtype=np.float32)


def hash_score(conversations):
    return np.array([zlib.crc32(json.dumps(conversation).encode()) % 1000 for conversation in conversations])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json"])
@pytest.mark.parametrize(
    ("loader", "rows", "columns"),
    [
        (load_rewardbench, PAIRS, ["subset", "id", "chosen", "rejected"]),
        (load_rewardbench2, SEVERAL, ["domain", "id", "num_correct", "responses"]),
        (load_rmbench, STYLES, ["domain", "id", "chosen", "rejected"]),
    ],
)
def test_every_format_gives_the_same_items(tmp_path, suffix, loader, rows, columns):
    path = save(tmp_path / f"own{suffix}", rows)
    items = loader(path)
    assert list(items.frame.columns) == columns
    assert len(items) == len(rows)
    pd.testing.assert_frame_equal(items.frame, loader(save(tmp_path / "x" / "own.json", rows)).frame)
    assert (items.source, items.commit) == (path.name, None)
    assert items.sha256 == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


def test_responses_are_whole_conversations(tmp_path):
    items = load_rewardbench(save(tmp_path / "a.jsonl", PAIRS)).frame
    assert items["chosen"][0] == [
        {"role": "user", "content": "Q alpacaeval-easy"},
        {"role": "assistant", "content": "No 0."},
    ]
    items = load_rewardbench2(save(tmp_path / "b.jsonl", SEVERAL)).frame
    last = items.iloc[-1]
    assert [c[-1]["content"] for c in last["responses"]] == ["red", "blue", "eight"] and last["num_correct"] == 2
    items = load_rmbench(save(tmp_path / "c.json", STYLES)).frame
    assert [c[-1]["content"] for c in items["rejected"][1]] == ["Never 1", "Never 1.", "Never 1.."]


def test_a_prompt_may_be_a_conversation(tmp_path):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    for suffix in (".jsonl", ".parquet"):
        path = save(tmp_path / f"turns{suffix}", [pair("hep-go", 1, prompt=[turn | {"more": 1} for turn in turns])])
        assert load_rewardbench(path).frame["chosen"][0][:-1] == turns


def test_prior_sets_take_their_name_from_the_file(tmp_path):
    turns = [{"content": "Hi", "role": "user"}]
    for name in PRIOR.rows:
        rows = [pair("whatever", number, prompt=turns) for number in range(2)]
        save(tmp_path / "data" / f"{name}-00000-of-00001.parquet", rows)
    save(tmp_path / "data" / "mtbench_human-00000-of-00001.parquet", [pair("mt", 1)])  # no part of the leaderboard
    items = load_prior_sets(tmp_path)
    assert items.frame["subset"].tolist() == [name for name in PRIOR.rows for _ in range(2)]
    assert load_prior_sets(tmp_path / "data" / "shp-00000-of-00001.parquet").frame["subset"].tolist() == ["shp"] * 2
    with pytest.raises(ValueError, match="mtbench_human-.*parquet:1: unknown set 'mtbench_human'; name the file after"):
        load_prior_sets(tmp_path / "data" / "mtbench_human-00000-of-00001.parquet")


def test_a_folder_is_searched_for_the_split(tmp_path):
    for shard in range(2):
        save(tmp_path / "data" / f"filtered-0000{shard}-of-00002.parquet", PAIRS[shard::2])
    save(tmp_path / "data" / "raw-00000-of-00001.parquet", PAIRS[:3])
    save(tmp_path / ".cache" / "filtered.jsonl", PAIRS[:3])
    (tmp_path / "README.md").write_text("filtered")
    items = load_rewardbench(tmp_path)
    assert items.frame["id"].tolist() == [row["id"] for row in PAIRS[0::2] + PAIRS[1::2]]
    assert items.source == tmp_path.name and items.commit is None and len(items.sha256) == 2
    save(tmp_path / "filtered.jsonl", PAIRS)
    with pytest.raises(ValueError, match="holds the data twice: data/filtered-.*name the one to read"):
        load_rewardbench(tmp_path)


def test_a_folder_with_a_single_data_file_is_clear_without_names(tmp_path):
    save(tmp_path / "own.jsonl", SEVERAL)
    assert len(load_rewardbench2(tmp_path)) == len(SEVERAL)
    save(tmp_path / "other.jsonl", SEVERAL)
    with pytest.raises(FileNotFoundError, match=r"holds no file named test .*it has other.jsonl, own.jsonl\. Name the"):
        load_rewardbench2(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no data file"):
        load_rmbench(tmp_path / "empty")


@pytest.mark.parametrize("where", ["local", COMMIT])
def test_the_commit_of_a_downloaded_folder_is_known(tmp_path, where):
    folder = tmp_path / where
    save(folder / "data" / "filtered-00000-of-00001.parquet", PAIRS)
    if where == "local":  # hf download --local-dir keeps commit, etag and time of each file
        record = folder / ".cache/huggingface/download/data/filtered-00000-of-00001.parquet.metadata"
        record.parent.mkdir(parents=True)
        record.write_text(f"{COMMIT}\netag\n1.0\n")
    items = load_rewardbench(folder)
    assert items.commit == COMMIT
    assert f"commit {COMMIT} is not the one checked for this kit, {REWARDBENCH.revision}" in str(items)


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_the_hub_is_read_at_the_pinned_commit_or_the_one_asked_for(tmp_path, monkeypatch, revision):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = revision or REWARDBENCH.revision
    snapshots = tmp_path / "datasets--allenai--reward-bench" / "snapshots"
    save(snapshots / commit / "data" / "filtered-00000-of-00001.parquet", PAIRS)
    save(snapshots / ("f" * 40) / "data" / "filtered-00000-of-00001.parquet", PAIRS[:1])
    items = load_rewardbench(revision=revision)
    assert (len(items), items.source, items.commit) == (len(PAIRS), "allenai/reward-bench", commit)
    assert any(note.startswith("commit") for note in items.notes) == (revision is not None)


@pytest.mark.parametrize("loader", LOADERS)
def test_without_network_the_error_says_what_to_download(tmp_path, monkeypatch, loader):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    benchmark = next(b for b in (REWARDBENCH, PRIOR, REWARDBENCH2, RMBENCH) if b.loader == loader.__name__)
    with pytest.raises(FileNotFoundError) as error:
        loader()
    folder = benchmark.hub.split("/")[1]
    command = f"`hf download {benchmark.hub} --repo-type dataset --revision {benchmark.revision} --local-dir {folder}`"
    assert command in str(error.value) and f"{loader.__name__}('{folder}')" in str(error.value)
    assert isinstance(error.value.__cause__, huggingface_hub.errors.LocalEntryNotFoundError)
    with pytest.raises(FileNotFoundError, match=f"--revision {COMMIT} "):
        loader(revision=COMMIT)
    # a snapshot without the data, as another tool's download of the card leaves it
    card = tmp_path / f"datasets--{benchmark.hub.replace('/', '--')}" / "snapshots" / benchmark.revision / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("card")
    with pytest.raises(FileNotFoundError, match="hf download"):
        loader()


def test_a_wrong_path_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder 'nowhere.jsonl'; check the path, or where there"):
        load_rmbench("nowhere.jsonl")
    with pytest.raises(ValueError, match="revision='main' is for the hub, but 'a.jsonl' is a path; drop one"):
        load_rewardbench(save(tmp_path / "a.jsonl", PAIRS), revision="main")


def test_the_official_numbers_of_rows():
    assert [sum(b.rows.values()) for b in (REWARDBENCH, PRIOR, REWARDBENCH2, RMBENCH)] == [2985, 17154, 1865, 1327]
    assert REWARDBENCH.rows["math-prm"] == 447
    assert set(RMBENCH.rows) == {part for parts in RMBENCH_DOMAINS.values() for part in parts}


def test_other_numbers_of_rows_are_noted(tmp_path):
    rows = [pair(subset, number) for subset, n in REWARDBENCH.rows.items() for number in range(n)]
    assert load_rewardbench(save(tmp_path / "a.jsonl", rows)).notes == ()
    (note,) = load_rewardbench(save(tmp_path / "b.jsonl", rows[5:-1])).notes
    assert note.startswith("2979 items, officially 2985 (alpacaeval-easy 95 of 100, hep-rust 163 of 164): a score of")
    assert "mt-bench-med 2 of 40, and 18 more)" in str(load_rewardbench(save(tmp_path / "d.jsonl", PAIRS)))
    items = load_rmbench(save(tmp_path / "c.json", STYLES[:1]))
    assert "1 items, officially 1327 (chat 1 of 129, code 0 of 228," in str(items)
    assert str(items).startswith("c.json: 1 items, commit unknown\n  note: ")


def test_other_bytes_under_the_official_name_are_noted(tmp_path):
    path = save(tmp_path / "test-00000-of-00001.parquet", SEVERAL)
    assert f"note: {path.name} is another file than that of commit" in str(load_rewardbench2(path))
    assert len(load_rewardbench2(save(tmp_path / "own.parquet", SEVERAL)).notes) == 1  # the number of rows only


@pytest.mark.parametrize(
    ("rows", "change", "complaint"),
    [
        (
            PAIRS,
            {"subset": "alpacaeval-hrad"},
            "unknown subset 'alpacaeval-hrad'; did you mean 'alpacaeval-hard'",
        ),
        (PAIRS, {"subset": 3}, "'subset' is a number, not a text"),
        (
            PAIRS,
            {"chosen": ["a"]},
            "'chosen' is a list, not a text; the file is damaged or another data set",
        ),
        (PAIRS, {"rejected": None}, "'rejected' is nothing, not a text"),
        (PAIRS, {"prompt": None}, "'prompt' is nothing; give a text or a list of messages"),
        (PAIRS, {"prompt": []}, "'prompt' is empty; end with the user's turn"),
        (PAIRS, {"prompt": ["Hi"]}, "'prompt' holds the message 'Hi'; give"),
        (
            PAIRS,
            {"prompt": [{"role": "human", "content": "Hi"}]},
            "'prompt' holds the message .*human",
        ),
        (PAIRS, {"prompt": [{"role": "user", "content": None}]}, "'prompt' holds the message"),
        (
            PAIRS,
            {"prompt": [{"role": "assistant", "content": "Hi"}]},
            "'prompt' ends with the assistant's turn; end with the",
        ),
        (STYLES, {"chosen": ["a", "b"]}, "'chosen' holds 2 responses, not 3"),
        (STYLES, {"rejected": ["a"] * 4}, "'rejected' holds 4 responses, not 3"),
        (STYLES, {"domain": "safety"}, "unknown domain 'safety'; did you mean 'safety-"),
        (STYLES, {"domain": None}, "'domain' is nothing"),
    ],
)
def test_a_bad_row_is_named(tmp_path, rows, change, complaint):
    path = save(tmp_path / "a.jsonl", [rows[0], rows[1] | change])
    with pytest.raises(ValueError, match=rf"^a\.jsonl:2: {complaint}"):
        (load_rmbench if rows is STYLES else load_rewardbench)(path)


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected", "subset"])
def test_a_missing_column_is_named(tmp_path, column):
    rows = [{("task" if name == column else name): value for name, value in row.items()} for row in PAIRS]
    for suffix in (".parquet", ".json"):
        with pytest.raises(ValueError, match=rf"own{suffix}:1: no '{column}'; rename or add it \(columns here: .*task"):
            load_rewardbench(save(tmp_path / f"own{suffix}", rows))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (several("Math", "1", **FOUR, num_correct=2), "1 right and 3 wrong responses, but num_correct 2; the file is"),
        (
            several("Math", "1", ["a", "b"], ["c", "d"]),
            "2 right and 2 wrong responses; a Ties item has some of each, any",
        ),
        (several("Math", "1", ["a"], ["c"]), "1 right and 1 wrong responses"),
        (several("Ties", "ref:2", ["a"], []), "1 right and 0 wrong responses"),
        (several("Ties", "7", ["a"], ["b"]), "Ties id '7' is neither 'ref:K' nor 'tied:K'; keep the ids"),
        (several("Ties", "ref:", ["a"], ["b"]), "Ties id 'ref:' is neither"),
        (several("Ties", "ref:1", ["a"], ["b"]), r"Ties id 'ref:1' stands twice, first at a\.jsonl:6"),
        (several("Ties", 7, ["a"], ["b"]), "'id' is a number, not a text"),
        (several("Maths", "1", **FOUR), "unknown subset 'Maths'; did you mean 'Math'"),
        (several("Math", "1", **FOUR, chosen="good"), "'chosen' is a text, not a list of texts"),
        (several("Math", "1", **FOUR, rejected=["a", None, "b"]), "'rejected' is a list with something else in it"),
        ({k: v for k, v in SEVERAL[0].items() if k != "num_correct"}, "no 'num_correct'; rename or add it"),
    ],
)
def test_a_bad_rewardbench2_row_is_named(tmp_path, row, complaint):
    with pytest.raises(ValueError, match=rf"^a\.jsonl:8: {complaint}"):
        load_rewardbench2(save(tmp_path / "a.jsonl", [*SEVERAL, row]))


def test_rmbench_files_of_one_domain_have_no_domain(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "domain"} for row in STYLES[:2]]
    path = save(tmp_path / "chat_filtered.json", rows)
    for source in (path, tmp_path):
        with pytest.raises(ValueError, match="chat_filtered.json:1: no 'domain'; only total_dataset.json has it"):
            load_rmbench(source)
    save(tmp_path / "total_dataset.json", STYLES)
    assert len(load_rmbench(tmp_path)) == len(STYLES)  # the other files do not matter


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", b"x", r"cannot read 'a\.csv': '\.csv' is none of \.jsonl, \.json, .*\.parquet; convert the file"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("a.parquet", b"PAR1 and no more", "is no whole Parquet file: .*; download or write it again"),
        ("a.jsonl", b'\n{"id": ', r"a\.jsonl:2: JSON syntax error; .*; write one complete JSON object per line"),
        ("a.json", b"[1]", r"a\.json:1: the row is a number; write each row as one JSON object"),
        ("a.jsonl", b"\n\n", r"a\.jsonl: no rows; where there is a network, run `hf download allenai/reward-bench "),
        ("a.json", b"[]", "no rows"),
    ],
)
def test_an_unreadable_file_is_named(tmp_path, name, content, complaint):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        load_rewardbench(path)


def test_rewardbench_by_hand(tmp_path):
    """Length gets 1 of 2 pairs right in every subset, 2 of 3 in math-prm, which counts 984 of 1968 in its section."""
    items = load_rewardbench(save(tmp_path / "a.parquet", PAIRS))
    result = benchmarks.rewardbench(score_items(items, length_score))
    reasoning = (984 * 2 / 3 + 6 * 164 / 2) / 1968
    sections = {"Chat": 0.5, "Chat Hard": 0.5, "Safety": 0.5, "Reasoning": reasoning}
    assert result == pytest.approx(sections | {"average": (1.5 + reasoning) / 4}, abs=1e-12)


def test_scores_stand_where_their_conversations_stood(tmp_path):
    pairs = score_items(load_rewardbench(save(tmp_path / "a.json", PAIRS)), hash_score)
    user = [{"role": "user", "content": PAIRS[5]["prompt"]}]
    for side in ("chosen", "rejected"):
        assert pairs[side][5] == hash_score([[*user, {"role": "assistant", "content": PAIRS[5][side]}]])[0]
    several = score_items(load_rewardbench2(save(tmp_path / "b.json", SEVERAL)), length_score)
    assert several["scores"].iloc[-1] == [3.0, 4.0, 5.0] and "responses" not in several
    three = score_items(load_rmbench(save(tmp_path / "c.json", STYLES)), length_score)
    assert three[["chosen", "rejected"]].iloc[0].tolist() == [[5.0, 6.0, 7.0], [7.0, 8.0, 9.0]]


def test_equal_conversations_are_scored_once_in_one_call(tmp_path):
    calls = []
    items = load_rewardbench2(save(tmp_path / "a.json", SEVERAL))
    score_items(items, lambda conversations: calls.append(conversations) or hash_score(conversations))
    (scored,) = calls
    assert len(scored) == len({json.dumps(c) for c in scored}) == 4 + 4  # 5 equal items of 4; red, blue, seven, eight


def test_rewardbench2_and_rmbench_by_hand(tmp_path):
    result = benchmarks.rewardbench2(score_items(load_rewardbench2(save(tmp_path / "a.json", SEVERAL)), length_score))
    # good 4 against bad 3, worse 5, wrong 5: no credit. ref: 3 against 5; tied: 3, 4 against 5; margin tanh(-2 / 1 - 1)
    assert result == pytest.approx(
        dict.fromkeys(list(REWARDBENCH2.rows)[:5], 0.0)
        | {"Ties": 0.01 * np.tanh(-3), "average": 0.01 * np.tanh(-3) / 6},
        abs=1e-12,
    )
    result = benchmarks.rmbench(score_items(load_rmbench(save(tmp_path / "b.json", STYLES)), length_score))
    # chosen 5, 6, 7 against rejected 7, 8, 9: never strictly above
    assert result["chat"] == {"easy": 0.0, "normal": 0.0, "hard": 0.0, "average": 0.0}
    opposite = benchmarks.rmbench(score_items(load_rmbench(tmp_path / "b.json"), lambda c: -length_score(c)))
    # -5, -6, -7 against -7, -8, -9: only the richest chosen against the plainest rejected one (easy) ties
    assert opposite["safety"] == pytest.approx({"easy": 2 / 3, "normal": 1.0, "hard": 1.0, "average": 8 / 9})


def test_a_part_of_a_benchmark_is_scored_as_partial(tmp_path):
    rows = [row for row in PAIRS if row["subset"] in benchmarks.REWARDBENCH_WEIGHTS["Chat"]]
    frame = score_items(load_rewardbench(save(tmp_path / "a.jsonl", rows)), length_score)
    assert benchmarks.rewardbench(frame, partial=True) == {"Chat": 0.5, "partial": True}
    frame = score_items(load_rewardbench2(save(tmp_path / "b.jsonl", TIES)), length_score)
    assert benchmarks.rewardbench2(frame, partial=True) == {"Ties": pytest.approx(0.01 * np.tanh(-3)), "partial": True}
    frame = score_items(load_rmbench(save(tmp_path / "c.json", STYLES[:2])), length_score)
    assert list(benchmarks.rmbench(frame, partial=True)) == ["chat", "partial"]


def test_prior_sets_complete_the_leaderboard_score(tmp_path):
    for name in PRIOR.rows:
        save(tmp_path / f"{name}.jsonl", [pair(name, number) for number in range(4)])
    sets = (load_rewardbench(save(tmp_path / "own" / "a.json", PAIRS)), load_prior_sets(tmp_path))
    result = benchmarks.rewardbench(pd.concat([score_items(items, length_score) for items in sets]))
    assert result["Prior Sets"] == 0.75
    assert result["leaderboard"] == pytest.approx((8 * result["average"] + 0.75) / 9)


def test_scores_of_another_number_are_refused(tmp_path):
    items = load_rmbench(save(tmp_path / "a.json", STYLES[:1]))
    for bad in ([1.0], np.zeros((6, 1))):
        with pytest.raises(ValueError, match="for 6 conversations; return one number each"):
            score_items(items, lambda _, bad=bad: bad)
