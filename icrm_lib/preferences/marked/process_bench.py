"""ProcessBench (arXiv 2412.06559): solutions in steps, the first wrong step as people found it, and the outcome."""

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from datasets import Dataset, List, Value

from icrm_lib.preferences.marked.sources import PROCESS_BENCH, opened
from icrm_lib.preferences.report import Report
from icrm_lib.preferences.responses import collect_spans
from icrm_lib.rows import BadRow, file_rows, type_name
from icrm_lib.runtime import nearest

BETWEEN = "\n\n"  # two steps
WRONG = "first wrong step"  # the label of its span
_CARRIED = {"outcome": Value("float64"), "first_error": Value("int64"), "step_ends": List(Value("int64"))}


def load_process_bench(subset: str = "gsm8k", *, files: str | Path = "") -> tuple[Dataset, Report]:
    """Read the solutions of a part of ProcessBench.

    Args:
        subset: "gsm8k", "math", "olympiadbench" or "omnimath".
        files: folder with `processbench_<subset>.json` or `<subset>.json`, or such a file; empty for the published
            address (the commit and SHA-256 of `sources.PROCESS_BENCH`).

    Returns:
        The columns of `load_spans`, where `response` is the steps with a blank line between them, `spans` holds the
        first wrong step, if one is wrong, and `source` is the model that wrote the solution; further `outcome` (1.0
        where the final answer is right, else 0.0: a right answer may follow a wrong step), `first_error` (number of
        the first wrong step from 0, or -1), `step_ends` (where each step ends in the response, in characters); and the
        report.

    Raises:
        FileNotFoundError, ConnectionError: the file cannot be had; the message says how to get it.
        ValueError: no such subset, another file at the address, or not a single usable row.
    """
    if subset not in PROCESS_BENCH:
        raise ValueError(f"unknown subset {subset!r}; {nearest(subset, list(PROCESS_BENCH))}")
    with opened(PROCESS_BENCH[subset], files) as (path, notes):
        dataset, report = collect_spans(f"ProcessBench ({subset})", _rows(path), carry=_CARRIED)
    report.notes[:0] = notes
    return dataset, report


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    for line, row in file_rows(path):
        try:
            yield line, _solution(row)
        except BadRow as bad:
            yield line, bad


def _solution(row: Any) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise row
    match row:
        case {"problem": str(problem), "steps": [_, *_] as steps, "label": label, "final_answer_correct": right}:
            pass
        case _:
            found = ", ".join(row) if isinstance(row, dict) else type_name(row)
            raise BadRow(
                "no solution in steps", f"found {found}; it needs problem, steps, label and final_answer_correct"
            )
    if not all(isinstance(step, str) and step.strip() for step in steps):
        raise BadRow("a step is no text", "every step must be a text that is not empty")
    if isinstance(label, bool) or not isinstance(label, int) or not -1 <= label < len(steps):
        raise BadRow("no such step", f"label is {label!r} of {len(steps)} steps; they count from 0, -1 says none")
    if not isinstance(right, bool):
        raise BadRow("an outcome is neither true nor false", f"found {type_name(right)} in final_answer_correct")
    ends = [end + i * len(BETWEEN) for i, end in enumerate(accumulate(map(len, steps)))]
    spans = [{"start": ends[label] - len(steps[label]), "end": ends[label], "label": WRONG}] if label >= 0 else []
    solution = {"prompt": problem, "response": BETWEEN.join(steps), "spans": spans, "source": row.get("generator")}
    return solution | {"outcome": float(right), "first_error": label, "step_ends": ends}
