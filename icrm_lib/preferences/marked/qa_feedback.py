"""FineGrainedRLHF's qa-feedback (arXiv 2306.01693): four answers a question, compared by people, and the errors of the
first one marked by them.
"""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

from datasets import Value

from icrm_lib.preferences.loading import collect_preferences
from icrm_lib.preferences.marked.sources import QA_FEEDBACK, Marked, identified, opened
from icrm_lib.preferences.responses import collect_spans
from icrm_lib.rows import BadRow, file_rows, type_name

ANSWERS = tuple(f"prediction {number}" for number in range(1, 5))
NAME = "qa-feedback"


def load_qa_feedback(files: str | Path = "", *, passages: bool = False) -> Marked:
    """Read the pairs that people preferred, and the answers whose errors they marked.

    Args:
        files: folder with `dev_feedback.json`, or a file in its format; empty for the published address (the commit
            and SHA-256 of `sources.QA_FEEDBACK`).
        passages: put what the answers were written from before the question. Without it nobody can tell errors of the
            types Wrong-Grounding and Unverifiable.

    Returns:
        pairs: one for each comparison that is no tie; the spans of `prediction 1`, None for the other answers, which
            nobody marked. `prompt_id` is that of the question, with and without passages.
        responses: `prediction 1` of each question with its spans, labelled by error type, and `missing`, the number of
            facts that people missed in it, for which there is no place.

    Raises:
        FileNotFoundError, ConnectionError: the file cannot be had; the message says how to get it.
        ValueError: another file at the address, or not a single usable row.
    """
    with opened(QA_FEEDBACK, files) as (path, notes):
        rows = [(line, _checked(row)) for line, row in file_rows(path)]
    pairs, of_pairs = collect_preferences(f"{NAME} (pairs)", _pairs(rows, passages))
    responses, of_responses = collect_spans(
        f"{NAME} (answers)", _responses(rows, passages), carry={"missing": Value("int64")}
    )
    questions = {line: row["question"] for line, row in rows if not isinstance(row, BadRow)}
    for report in (of_pairs, of_responses):
        report.notes[:0] = notes
    return Marked(identified(pairs, questions), identified(responses, questions), (of_pairs, of_responses))


def _checked(row: Any) -> dict[str, Any] | BadRow:
    """Return a row that has all parts, with `spans` beside them, or what is wrong with it."""
    if isinstance(row, BadRow):
        return row
    match row:
        case {
            "question": str(),
            "passages": list(passages),
            "preference": list(preference),
            "feedback": {"errors": list(errors), "missing-info": list()},
        } if all(isinstance(row.get(answer), str) for answer in ANSWERS):
            pass
        case _:
            found = ", ".join(row) if isinstance(row, dict) else type_name(row)
            return BadRow("no question with four answers and feedback", f"found {found}; see the data's own README")
    if len(preference) != 6 or not all(verdict in (0, 1, 2) for verdict in preference):
        return BadRow(
            "no six comparisons", f"preference is {str(preference)[:40]}; give 0, 1 or 2 for each two answers"
        )
    if not all(isinstance(block, list) and all(isinstance(text, str) for text in block) for block in passages):
        return BadRow("passages are no lists of texts", "each is its title and its sentences")
    if not all(isinstance(error, dict) for error in errors):
        return BadRow("an error is no object", "give start, end and error type")
    spans = [{"start": e.get("start"), "end": e.get("end"), "label": e.get("error type")} for e in errors]
    return row | {"spans": spans}


def _prompt(row: dict[str, Any], passages: bool) -> str:
    blocks = ["\n".join([title, " ".join(sentences)]) for title, *sentences in row["passages"]] if passages else []
    return "\n\n".join([*blocks, row["question"]])  # the question last: a prompt that is cut loses its beginning


def _pairs(rows: list[tuple[int, Any]], passages: bool) -> Iterator[tuple[int, Any]]:
    for line, row in rows:
        if isinstance(row, BadRow):
            yield line, row
            continue
        for (one, other), verdict in zip(combinations(ANSWERS, 2), row["preference"], strict=True):
            chosen, rejected = (other, one) if verdict == 2 else (one, other)
            spans = {ANSWERS[0]: row["spans"]}  # of the others nobody knows
            pair = {"prompt": _prompt(row, passages), "chosen": row[chosen], "rejected": row[rejected]}
            pair |= {"chosen_spans": spans.get(chosen), "rejected_spans": spans.get(rejected)}
            yield line, pair | ({"winner": "tie"} if verdict == 0 else {})


def _responses(rows: list[tuple[int, Any]], passages: bool) -> Iterator[tuple[int, Any]]:
    for line, row in rows:
        if isinstance(row, BadRow):
            yield line, row
            continue
        answer = {"prompt": _prompt(row, passages), "response": row[ANSWERS[0]], "spans": row["spans"]}
        yield line, answer | {"missing": len(row["feedback"]["missing-info"])}
