"""Solutions of PRM800K's problems, sampled here and labelled by their boxed answers."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset

from icrm_lib.measures.answers import boxed_answer, right_solutions
from icrm_lib.preferences.forms import LABEL_KEYS
from icrm_lib.preferences.paper.sources import PRM800K, SPLITS, Rows, Splits
from icrm_lib.preferences.prompts import identify_prompt, split_by_prompt
from icrm_lib.preferences.report import Refusal, Report
from icrm_lib.profiles import DataSettings
from icrm_lib.rows import BadRow
from icrm_lib.tokenization import Conversation

SHARES = (0.94, 0.03, 0.03)  # of PRM800K's problems; the paper trains on all and has no such test
Draw = Callable[[list[Conversation]], list[list[str]]]  # prompts -> the responses to each


def make_prm800k(data: DataSettings, folder: Path, draw: Draw | None, seed: int) -> list[Report]:
    """Write the three splits of solutions; returns the report on the problems, then one a split."""
    if draw is None:
        raise ValueError("prm800k needs solutions and draw is None; pass draw=sampler(...) of language_model.samples")
    splits = Splits("prm800k", data, folder, LABEL_KEYS)
    problems, report = _problems(splits.read(PRM800K, "phase2_train"))
    prompts = [[{"role": "user", "content": problem}] for problem in problems["problem"]]
    drawn = draw(prompts)
    sizes = sorted({len(solutions) for solutions in drawn})
    if len(drawn) != len(prompts) or len(sizes) > 1 or sizes[0] < 2 or sizes[0] % 2:
        raise ValueError(
            f"{len(prompts)} problems have {len(drawn)} answers with {sizes} solutions each; every one needs the same "
            "even number of them, as two make a pair: correct samples: n"
        )
    for split, part in zip(SPLITS, split_by_prompt(problems, SHARES, seed), strict=True):
        notes: list[str] = []
        splits.write(split, _solution_pairs(part, drawn, notes), notes)
    return [report, *splits.in_order()]


def _problems(rows: Rows) -> tuple[Dataset, Report]:
    """Return the distinct problems (columns `problem`, `answer`, `prompt_id`, `place`), each where it occurs first."""
    report, found, count = Report("prm800k (problems)"), {}, 0
    for count, (line, row) in enumerate(rows, 1):  # noqa: B007 (read below)
        try:
            problem, answer = _question(row)
        except BadRow as bad:
            report.refusals.append(Refusal(report.source, line, bad.reason, bad.remedy))
            continue
        found.setdefault(identify_prompt([{"role": "user", "content": problem}]), (problem, answer))
    report.kept = len(found)
    report.notes.append(f"{count} rows are solutions of {len(found)} distinct problems, each of which is kept once")
    if not found:
        raise ValueError(f"no problem with an answer:\n{report}")
    columns = {name: [texts[i] for texts in found.values()] for i, name in enumerate(("problem", "answer"))}
    return Dataset.from_dict({**columns, "prompt_id": list(found), "place": list(range(len(found)))}), report


def _question(row: Any) -> tuple[str, str]:
    if isinstance(row, BadRow):
        raise row
    match row:
        case {"question": {"problem": str(problem), "ground_truth_answer": str(answer)}}:
            if problem.strip() and answer.strip():
                return problem, answer
    raise BadRow("no problem with an answer", "question: problem and ground_truth_answer must be texts, not empty")


def _solution_pairs(problems: Dataset, drawn: list[list[str]], notes: list[str]) -> Rows:
    """Yield each problem's solutions two by two, the right one as chosen; without a difference the earlier one."""
    counts: Counter[str] = Counter()
    for problem in problems:
        solutions = [normal_steps(solution) for solution in drawn[problem["place"]]]
        labels = [float(right) for right in right_solutions(solutions, problem["answer"])]
        counts["solutions"] += len(solutions)
        counts["right"] += int(sum(labels))
        counts["without a box"] += sum(boxed_answer(solution) is None for solution in solutions)
        for first in range(0, len(solutions), 2):
            pair = sorted(range(first, first + 2), key=lambda index: -labels[index])
            counts["differ"] += labels[first] != labels[first + 1]
            row = {"prompt": problem["problem"], "source": "prm800k"}
            row |= dict(zip(("chosen", "rejected"), (solutions[index] for index in pair), strict=True))
            row |= dict(zip(LABEL_KEYS, (labels[index] for index in pair), strict=True))
            yield (problem["place"] * len(solutions) + first) // 2 + 1, row
    notes.append(
        f"{counts['right']} of {counts['solutions']} solutions right, {counts['without a box']} without a boxed "
        f"answer; {counts['differ']} pairs of a right and a wrong one"
    )


def normal_steps(solution: str) -> str:
    """Return a solution with exactly one blank line between its steps, and none around them."""
    return re.sub(r"[^\S\n]*\n\s*\n", "\n\n", solution.strip())
