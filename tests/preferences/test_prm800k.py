"""Solutions of PRM800K: two by two, labelled by their boxed answers."""

import pytest
from published import load, solve
from rows import user

from icrm_lib.preferences.paper import SPLITS
from icrm_lib.preferences.paper.prm800k import normal_steps


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
    ("solution", "normal"),
    [("a\nb", "a\nb"), ("\n a\n\nb \n", "a\n\nb"), ("a \t\n\n\n \n  b\r\n\r\nc", "a\n\n  b\n\nc"), (" \n\n ", "")],
)
def test_one_blank_line_stands_between_steps(solution, normal):
    assert normal_steps(solution) == normal == normal_steps(normal)
