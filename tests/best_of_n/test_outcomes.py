"""Outcomes of picks: under a judge, and of labelled responses."""

import json

import numpy as np
import pandas as pd
import pytest

from icrm_lib import runtime
from icrm_lib.best_of_n import load_outcomes, outcome_accuracy, win_tie_lose


def test_win_tie_and_lose_add_up_and_a_margin_ties():
    ours, theirs = np.array([3.0, 1, 2, 5]), np.array([1.0, 2, 2, 4.9])
    shares = win_tie_lose(ours, theirs)
    assert [shares[k].value for k in ("win", "tie", "lose")] == [0.5, 0.25, 0.25]
    assert [win_tie_lose(ours, theirs, margin=0.2)[k].value for k in ("win", "tie", "lose")] == [0.25, 0.5, 0.25]


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        win_tie_lose(np.array([1.0, np.nan]), np.array([0.0, 0.0]))


def test_outcomes_are_read_and_bad_rows_named(tmp_path):
    path = tmp_path / "math.jsonl"
    rows = [
        {"prompt": "1 + 1", "responses": ["2", "3"], "correct": [True, False]},
        {"prompt": "1 + 2", "responses": ["3"], "correct": [True, False]},
        {"prompt": "1 + 3", "responses": ["4"]},
        {"prompt": "1 + 4", "responses": [" "], "correct": [True]},
        {"prompt": "1 + 5", "responses": ["6"], "correct": ["yes"]},
        {"prompt": "1 + 6", "responses": ["7", "8"], "correct": [1, 0]},
    ]
    path.write_text("\n".join([*map(json.dumps, rows), "{", ""]))
    frame, refused = load_outcomes(path)
    assert frame["prompt"].tolist() == [0, 0, 1, 1] and frame["correct"].tolist() == [True, False, True, False]
    assert frame["conversation"][3] == [{"role": "user", "content": "1 + 6"}, {"role": "assistant", "content": "8"}]
    assert [text.split(":")[1] for text in refused] == ["2", "3", "4", "5", "7"]
    assert "missing key 'correct'" in refused[1]
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="no usable row"):
        load_outcomes(path)


def test_pick_majority_and_oracle_are_counted_by_prompt():
    rows = pd.DataFrame(
        {
            "prompt": [0, 0, 0, 1, 1, 1, 2, 2],
            "response": ["A: 5", "A: 5", "A: 6", "A: 1", "A: 2", "A: 2", "A: 3", "A: 4"],
            "correct": [True, True, False, True, False, False, False, True],
        }
    )
    found = outcome_accuracy(rows, [0, 1, 2, 5, 1, 1, 7, 7])
    assert found["value"].to_dict() == pytest.approx(
        {"mean": (2 / 3 + 1 / 3 + 1 / 2) / 3, "majority": (1 + 0 + 0.5) / 3, "pick": (0 + 1 + 0.5) / 3, "oracle": 1.0}
    )
    assert (found["low"] <= found["value"]).all() and (found["value"] <= found["high"]).all()
    with pytest.raises(ValueError, match="2 scores but 8 responses"):
        outcome_accuracy(rows, [1, 2])


GSM8K = runtime.project_root().parent / "shared" / "data" / "gsm8k_best_of_6.jsonl"


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"needs {GSM8K.name} beside the project, in ../shared/data")
def test_real_outcomes_are_read_and_a_perfect_scorer_is_the_oracle():
    rows, refused = load_outcomes(GSM8K)
    assert rows["prompt"].nunique() > 600 and len(refused) < 10
    found = outcome_accuracy(rows, rows["correct"].to_numpy(dtype=float))["value"]
    assert found["pick"] == found["oracle"] > found["majority"] > found["mean"]
