"""Small files as the paper's data sets are published."""

import json

import pyarrow as pa
import pyarrow.parquet
from rows import assistant, user

from icrm_lib.preferences.paper import load_recipe
from icrm_lib.profiles import DataSettings

UNIFIED, SKYWORK = "Unified-Feedback", "Skywork-Reward-Preference-80K-v0.2"


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


def load(name, files, folder, **settings):
    options = {key: settings.pop(key) for key in ("draw", "seed") if key in settings}
    return load_recipe(name, DataSettings(preferences=name, files=str(files), **settings), folder, **options)


def question(number, answer=None):
    problem = {"problem": f"What is {number} + 1?", "ground_truth_answer": str(answer or number + 1)}
    return {"labeler": "x", "question": problem | {"pre_generated_steps": ["a"]}, "label": {"steps": []}}


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


def write_problems(folder):
    """40 problems in 80 rows, one row without an answer."""
    rows = [question(i // 2) for i in range(80)]
    rows.insert(5, {"question": {"problem": "What?", "ground_truth_answer": None}})
    write_lines(folder / "prm800k" / "phase2_train.jsonl", rows)
    return folder
