"""The paper's data: which rows are taken, how they are labelled and split, and that their number costs no memory."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tiny import LORA, TEXTS, save_tiny
from transformers import AutoTokenizer

from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.solutions import sampler
from icrm_lib.preferences import LABEL_KEYS, load_preferences, tokenize_pairs
from icrm_lib.preferences.collection import collect_preferences
from icrm_lib.preferences.paper import SPLITS, load_recipe, prm800k, recipe_key, sources, splits
from icrm_lib.preferences.paper.prm800k import boxed_answer, normal_steps, right_solutions
from icrm_lib.profiles import BaseModelSettings, DataSettings, GeneratorSettings, Profile, RewardModelSettings
from icrm_lib.profiles import SampleSettings as Samples
from icrm_lib.tokenization import prepare_tokenizer

UNIFIED, SKYWORK = "Unified-Feedback", "Skywork-Reward-Preference-80K-v0.2"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def rated(question, a, b, source="openai/webgpt_comparisons"):
    """A row of Unified-Feedback: two turns in A, one in B; only the first counts."""
    return {
        "id": question,
        "conv_A": [user(question), assistant(f"A to {question}"), user("more?"), assistant("no")],
        "conv_B": [user(question), assistant(f"B to {question}")],
        "conv_A_rating": a,
        "conv_B_rating": b,
        "num_turns": 2,
        "source": source,
    }


def skywork(number):
    talk = [user(f"sky {number}"), assistant("hm"), user("and?")]
    return {
        "chosen": [*talk, assistant(f"good {number}")],
        "rejected": [*talk, assistant(f"bad {number}")],
        "source": "magpie",
    }


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def columns(dataset, *names):
    return list(zip(*(dataset[name][:] for name in names), strict=True))


# Unified-Feedback: ratings 1 : 0 make A the better one, and every third row is a tie.
TRAIN = [rated(f"t{i}", 2.5, 1) if i % 3 else rated(f"t{i}", 1, 1) for i in range(12)]
VAL = [rated(f"v{i}", 0, 1) for i in range(8)]


@pytest.fixture
def unified(tmp_path):
    """Folder as `hub download` makes it: two shards, and another configuration beside `all`."""
    write_parquet(tmp_path / UNIFIED / "all" / "train-00000-of-00002.parquet", TRAIN[:5])
    write_parquet(tmp_path / UNIFIED / "all" / "train-00001-of-00002.parquet", TRAIN[5:])
    write_parquet(tmp_path / UNIFIED / "all" / "val-00000-of-00001.parquet", VAL)
    write_parquet(tmp_path / UNIFIED / "Nectar" / "train-00000-of-00001.parquet", [rated("not this", 1, 0)])
    write_lines(tmp_path / UNIFIED / ".cache" / "train-00000-of-00002.parquet.metadata", [])
    return tmp_path


def load(name, files, folder, **settings):
    options = {key: settings.pop(key) for key in ("draw", "seed") if key in settings}
    return load_recipe(name, DataSettings(preferences=name, files=str(files), **settings), folder, **options)


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
    rows = [
        rated(" my post\n", 0, 1, "openai/summarize_from_feedback(comparisons)"),
        rated(" other ", 0, 1),
    ]
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


# Files, hub, and what was made before ------------------------------------------------------------------------


def test_what_was_made_is_opened_and_memory_mapped(unified, tmp_path, monkeypatch):
    first, reports = load("unified-feedback", unified, tmp_path / "made", stride=2)
    monkeypatch.setattr(splits, "published_rows", None)
    again, same = load("unified-feedback", unified, tmp_path / "made", stride=2)
    assert same == reports and len(same) == 3
    for split in SPLITS:
        assert again[split][:] == first[split][:] and again[split].features == first[split].features
        assert [Path(file["filename"]).name for file in again[split].cache_files] == [f"{split}.arrow"]


def test_missing_files_say_what_to_download(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'train' of llm-blender/Unified-Feedback.*hf download.*'all/\*'"):
        load("unified-feedback", tmp_path, tmp_path / "made")
    write_lines(tmp_path / UNIFIED / "train.jsonl", TRAIN)
    with pytest.raises(FileNotFoundError, match="'val' of llm-blender"):
        load("unified-feedback", tmp_path, tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="of Skywork/Skywork-Reward-Preference-80K-v0.2.*hf download"):
        load("skywork+unified-feedback", tmp_path, tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="phase2_train.jsonl.*curl"):
        load("prm800k", tmp_path, tmp_path / "made", draw=lambda prompts: [])
    with pytest.raises(ValueError, match="did you mean 'unified-feedback'"):
        load("unified_feedback", tmp_path, tmp_path / "made")
    with pytest.raises(ValueError, match="stride=0"):
        load("unified-feedback", tmp_path, tmp_path / "made", stride=0)
    assert not (tmp_path / "made" / "reports.json").exists()


def test_the_hub_is_streamed_and_without_it_the_error_says_what_to_download(unified, tmp_path, monkeypatch):
    asked, real = [], sources.datasets.load_dataset

    def local(name, config=None, *, split, streaming, **options):
        asked.append((name, config, split, streaming, options))
        if split == "val":
            raise OSError("no route")
        return iter(TRAIN)

    monkeypatch.setattr(sources.datasets, "load_dataset", local)
    with pytest.raises(ConnectionError, match="'val': no route; where there is a network, run `hf download"):
        load("unified-feedback", "", tmp_path / "made")
    assert asked == [("llm-blender/Unified-Feedback", "all", split, True, {}) for split in ("train", "val")]

    def parquet(name, config, *, split, streaming):
        files = str(unified / UNIFIED / config / f"{split}-*.parquet")
        return real("parquet", data_files={split: files}, split=split, streaming=streaming)

    monkeypatch.setattr(sources.datasets, "load_dataset", parquet)
    streamed, _ = load("unified-feedback", "", tmp_path / "hub", stride=2)
    from_files, _ = load("unified-feedback", unified, tmp_path / "files", stride=2)
    assert all(streamed[split][:] == from_files[split][:] for split in SPLITS)


def test_lines_outside_the_hub_are_read_from_their_address(problems, tmp_path, monkeypatch):
    with open(problems / "prm800k" / "phase2_train.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(question(40, "one\u2028line"), ensure_ascii=False) + '\n{"question"\n')
    from_files, reports = load("prm800k", problems, tmp_path / "files", draw=solve)
    address = str(problems / "prm800k" / "phase2_train.jsonl")
    source = replace(prm800k.PRM800K, url=address)
    monkeypatch.setattr(prm800k, "PRM800K", source)
    streamed, same = load("prm800k", "", tmp_path / "streamed", draw=solve)
    assert all(streamed[split][:] == from_files[split][:] for split in SPLITS)
    assert [(r.line, r.reason) for r in same[0].refusals] == [(r.line, r.reason) for r in reports[0].refusals]
    assert [r.line for r in same[0].refusals] == [6, 83]


def test_the_key_follows_stride_and_contents(unified):
    data = DataSettings(files=str(unified), stride=2)
    key = recipe_key("unified-feedback", data)
    assert key == recipe_key("unified-feedback", replace(data, train_pairs=7)) and json.dumps(key)
    assert key != recipe_key("unified-feedback", replace(data, stride=3))
    write_parquet(unified / UNIFIED / "all" / "val-00000-of-00001.parquet", VAL[:7])
    assert key != recipe_key("unified-feedback", data)
    assert recipe_key("prm800k", DataSettings())["openai/prm800k"].endswith("/phase2_train.jsonl")


# PRM800K -----------------------------------------------------------------------------------------------------


def question(number, answer=None):
    problem = {"problem": f"What is {number} + 1?", "ground_truth_answer": str(answer or number + 1)}
    return {"labeler": "x", "question": problem | {"pre_generated_steps": ["a"]}, "label": {"steps": []}}


@pytest.fixture
def problems(tmp_path):
    """40 problems in 80 rows, one row without an answer."""
    rows = [question(i // 2) for i in range(80)]
    rows.insert(5, {"question": {"problem": "What?", "ground_truth_answer": None}})
    write_lines(tmp_path / "prm800k" / "phase2_train.jsonl", rows)
    return tmp_path


def solve(prompts):
    """Right, wrong; wrong, right; both right; no box and wrong; the same twice (dropped)."""
    solutions = []
    for (prompt,) in prompts:
        answer = int(prompt["content"].split()[2]) + 1
        right = f"Count on.  \n \n\n  One more.\n\n\\boxed{{\\dfrac{{{2 * answer}}}{{2}}}}"
        wrong = f"Count back.\n\n\\boxed{{{answer + 1}}}"
        solutions.append(
            [right, wrong, wrong + " ", right, right, right + "!", f"It is {answer}.", wrong, "same", "same"]
        )
    return solutions


def test_pairs_of_solutions_are_labelled_by_their_answers(problems, tmp_path):
    pairs, (problem, train, validation, test) = load("prm800k", problems, tmp_path / "made", draw=solve)
    assert problem.kept == 40 and [refusal.line for refusal in problem.refusals] == [6]
    assert problem.notes == ["81 rows are solutions of 40 distinct problems, each of which is kept once"]
    assert [len(set(pairs[split]["prompt_id"])) for split in SPLITS] == [38, 1, 1]
    assert len(set.union(*(set(pairs[split]["prompt_id"]) for split in SPLITS))) == 40
    lines = [line for split in SPLITS for line in pairs[split]["line"]]
    assert sorted(lines) == [i for i in range(1, 201) if i % 5]
    for split in SPLITS:
        assert pairs[split].features["chosen_label"].dtype == "float64"
        for row in pairs[split]:
            answer = (row["line"] - 1) // 5 + 1
            assert row["prompt"] == [user(f"What is {answer - 1} + 1?")]
            right = f"Count on.\n\n  One more.\n\n\\boxed{{\\dfrac{{{2 * answer}}}{{2}}}}"
            wrong = f"Count back.\n\n\\boxed{{{answer + 1}}}"
            want = {
                1: (right, 1.0, wrong, 0.0),
                2: (right, 1.0, wrong, 0.0),
                3: (right, 1.0, right + "!", 1.0),
                4: (f"It is {answer}.", 0.0, wrong, 0.0),
            }[row["line"] - 5 * (answer - 1)]
            assert (row["chosen"], row["chosen_label"], row["rejected"], row["rejected_label"]) == want
    assert train.counts() == {"chosen equals rejected": 38} and (train.kept, test.kept) == (38 * 4, 4)
    assert train.notes[0] == (
        "152 of 380 solutions right, 114 without a boxed answer; 76 pairs of a right and a wrong one"
    )


def test_the_seed_assigns_problems_to_splits(problems, tmp_path):
    made = [
        load("prm800k", problems, tmp_path / str(run), draw=solve, seed=seed)[0] for run, seed in enumerate((0, 0, 1))
    ]
    held_out = [set(pairs["validation"]["prompt_id"]) | set(pairs["test"]["prompt_id"]) for pairs in made]
    assert held_out[0] == held_out[1] != held_out[2]


def test_solutions_must_come_in_twos(problems, tmp_path):
    for draw in (lambda prompts: [["a"]] * len(prompts), lambda prompts: [["a", "b"]], lambda prompts: [[]] * 40):
        with pytest.raises(ValueError, match="even number"):
            load("prm800k", problems, tmp_path / "made", draw=draw)
    with pytest.raises(ValueError, match="draw is None"):
        load("prm800k", problems, tmp_path / "made")


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \boxed{x_{2} + \sqrt{y^{3}}}", r"x_{2} + \sqrt{y^{3}}"),
        (r"\boxed{(1, 2\}} is half open", r"(1, 2\}"),
        (r"\boxed{1}, no, \boxed{\frac{1}{", None),  # cut off
        ("It is 7.", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_answer_is_the_last_box_with_the_braces_inside_it(solution, answer):
    assert boxed_answer(solution) == answer


@pytest.mark.parametrize(
    ("truth", "right", "wrong"),
    [
        (r"\frac{1}{2}", [r"\dfrac12", "0.5", "1/2"], ["2", r"-\frac{1}{2}", ""]),
        (r"\text{Evelyn}", ["Evelyn", r"\text{Evelyn}"], [r"\text{Briana}"]),
        ("(3, \\frac{\\pi}{2})", [r"\left( 3, \frac{\pi}{2} \right)"], [r"(3, \frac{\pi}{3})"]),
        (r"2\sqrt{3}", [r"\sqrt{12}"], [r"2\sqrt{5}"]),
        ("10101_2", ["10101_{2}"], ["10111_2"]),
        ("1,200", ["1200"], ["1201"]),
    ],
)
def test_answers_are_compared_as_mathematics(truth, right, wrong):
    solutions = [f"Hence \\boxed{{{answer}}}" for answer in [*right, *wrong]]
    assert right_solutions([*solutions, f"{truth} it is"], truth) == [True] * len(right) + [False] * (len(wrong) + 1)


@pytest.mark.parametrize(
    ("solution", "normal"),
    [
        ("a\nb", "a\nb"),
        ("\n a\n\nb \n", "a\n\nb"),
        ("a \t\n\n\n \n  b\r\n\r\nc", "a\n\n  b\n\nc"),
        (" \n\n ", ""),
    ],
)
def test_one_blank_line_stands_between_steps(solution, normal):
    assert normal_steps(solution) == normal == normal_steps(normal)


def test_a_tiny_model_draws_once_and_its_labels_reach_the_tokenised_pairs(problems, tmp_path):
    save_tiny("qwen2", tmp_path / "model")
    tokenizer = prepare_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "model"))
    samples = Samples(n=2, temperature=0.7, top_p=0.8, max_new_tokens=4)
    path = tmp_path / "samples.jsonl"
    draw = sampler(tmp_path / "model", tokenizer, samples, path, seed=0)
    pairs, reports = load("prm800k", problems, tmp_path / "made", draw=draw)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + 40 and json.loads(lines[0])["settings"]["top_p"] == 0.8
    assert reports[1].notes[0].startswith("0 of 76 solutions right, 76 without a boxed answer")
    again, _ = load("prm800k", problems, tmp_path / "again", draw=draw)
    assert again["train"][:] == pairs["train"][:] and len(path.read_text().splitlines()) == len(lines)
    tokenized, _ = tokenize_pairs(pairs["train"], tokenizer)
    assert tokenized["chosen_label"][:] == [0.0] * len(tokenized) and LABEL_KEYS[1] in tokenized.column_names


# Any number of rows ------------------------------------------------------------------------------------------


def test_rows_on_disk_are_those_in_memory(tmp_path):
    rows = [{"prompt": f"q{i % 900}", "chosen": "a", "rejected": f"b{i % 7}", "margin": i} for i in range(2500)]
    rows[4]["source"] = "somewhere"
    write_lines(tmp_path / "rows.jsonl", rows)
    memory, report = load_preferences(tmp_path / "rows.jsonl")
    disk, same = load_preferences(tmp_path / "rows.jsonl", file=tmp_path / "rows.arrow")
    assert report == same and memory[:] == disk[:] and memory.features == disk.features
    assert [file["filename"] for file in disk.cache_files] == [str(tmp_path / "rows.arrow")]
    assert disk["source"][4] == "somewhere" and disk["margin"][2499] == 2499


def test_carried_numbers_must_be_there_and_known_prompts_stay_out():
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b", "weight": i} for i in range(3)] + [
        {"prompt": "q3", "chosen": "a", "rejected": "b"}
    ]
    first, _ = collect_preferences("first", enumerate(rows[:1], 1))
    dataset, report = collect_preferences(
        "rows", enumerate(rows, 1), carry=["weight"], without={"first": set(first["prompt_id"])}
    )
    assert dataset["weight"][:] == [1.0, 2.0]
    assert report.notes == ["1 rows left out: their prompt is in first"]
    assert [refusal.reason for refusal in report.refusals] == ["missing key 'weight'"]


PEAK = """
import re, sys
from pathlib import Path
from icrm_lib.preferences.paper import load_recipe
from icrm_lib.profiles import DataSettings
for files in sys.argv[1:]:
    pairs, _ = load_recipe("unified-feedback", DataSettings(files=files), files + "/made")
    print(len(pairs["train"]), re.search(r"VmHWM:\\s+([0-9]+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_eight_times_the_rows_take_no_more_memory(tmp_path):
    row = json.dumps(rated("NUMBER", 1, 0)) + "\n"
    for count in (4_000, 34_000):
        files = tmp_path / str(count)
        write_lines(files / "val.jsonl", VAL)
        with open(files / "train.jsonl", "w") as file:
            file.writelines(row.replace("NUMBER", f"t{i}") for i in range(count))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "4000"), str(tmp_path / "34000")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    few, few_peak, many, many_peak = map(int, done.stdout.split())
    assert (few, many) == (4_000, 34_000)
    # 5 MiB for hashes, their order and mapped pages; as Python objects 30,000 rows take 60 MiB.
    assert (many_peak - few_peak) / 1024 < 16, (few_peak, many_peak)


# From the profile's settings to a reward model -----------------------------------------------------------------

MICRO = Profile(
    name="micro",
    data=DataSettings(train_pairs=24, validation_pairs=4, test_pairs=6, max_length=192, stride=2),
    samples=Samples(n=2, temperature=0.7, top_p=0.8, max_new_tokens=12),
    base_model=BaseModelSettings(),
    generator=GeneratorSettings(**LORA),
    reward_model=RewardModelSettings(**LORA, consistency_weight=0.3, sft_weight=0.1),
)


def talk(number):
    return TEXTS[3 * number % len(TEXTS)] + f" ({number})"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All three data sets in one folder."""
    folder = tmp_path_factory.mktemp("published")
    write_parquet(folder / UNIFIED / "all" / "train-0.parquet", [rated(talk(i), 1, 0) for i in range(60)])
    write_parquet(folder / UNIFIED / "all" / "val-0.parquet", [rated(talk(i), 0, 1) for i in range(100, 130)])
    write_parquet(folder / SKYWORK / "data" / "train-0.parquet", [skywork(i) for i in range(80)])
    write_lines(folder / "prm800k" / "phase2_train.jsonl", [question(i) for i in range(40)])
    return folder


@pytest.mark.parametrize(
    ("recipe", "family"),
    [("unified-feedback", "gemma"), ("skywork+unified-feedback", "llama"), ("prm800k", "qwen2")],
)
def test_a_recipe_goes_all_the_way_to_a_reward_model(recipe, family, published, tmp_path):
    save_tiny(family, tmp_path / "model")
    profile = replace(MICRO, data=replace(MICRO.data, preferences=recipe, files=str(published)))
    if recipe == "prm800k":
        asked = {"kind": "base", "model": str(tmp_path / "model"), "temperature": 0.7, "top_p": 0.8}
        math = replace(MICRO.reward_model, loss="outcome")
        profile = replace(profile, generator=replace(profile.generator, **asked), reward_model=math)
    ws = Workspace(profile, base_model=tmp_path / "model", folder=tmp_path / "runs")
    sizes = {split: len(ws.pairs[split]) for split in SPLITS}
    assert sizes["train"] == 24 and (recipe == "prm800k" or sizes == {"train": 24, "validation": 4, "test": 6})
    assert len(ws.reports) == (4 if recipe == "prm800k" else 3)
    log = (ws.reward_model_folder("icrm") / "log.jsonl").read_text().splitlines()
    parts = [value for entry in map(json.loads, log) for name, value in entry.items() if name.endswith("_loss")]
    assert parts and np.isfinite(parts).all()
    assert any("outcome_loss" in line for line in log) == (recipe == "prm800k")
    names = {path.name for path in ws.folder.iterdir()}
    again = Workspace(profile, base_model=tmp_path / "model", folder=tmp_path / "runs")
    assert again.pairs["test"][:] == ws.pairs["test"][:] and again.reports == ws.reports[: len(again.reports)]
    assert {path.name for path in ws.folder.iterdir()} == names
    if recipe == "prm800k":
        assert set(ws.tokenized["train"]["chosen_label"]) == {0.0}  # random weights solve nothing
        (drawn,) = ws.folder.glob("samples-*.jsonl")
        assert len(drawn.read_text().splitlines()) == 1 + 40


def test_a_math_profile_cannot_fit_its_own_sampler(published, tmp_path):
    data = replace(MICRO.data, preferences="prm800k", files=str(published))
    ws = Workspace(replace(MICRO, data=data), base_model=tmp_path, folder=tmp_path / "runs")
    with pytest.raises(ValueError, match="set kind to 'base'"):
        _ = ws.pairs
