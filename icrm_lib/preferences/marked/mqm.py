"""MQM's tables (Freitag et al. 2021, arXiv 2104.14478): translations whose errors experts marked, and pairs of them."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from datasets import Value

from icrm_lib.preferences.loading import collect_preferences
from icrm_lib.preferences.marked.mqm_table import Key, Translation, read_table
from icrm_lib.preferences.marked.sources import MQM_TED_ZHEN, Marked, identified, opened
from icrm_lib.preferences.responses import collect_spans

NAME = "MQM"
ASKED = {
    "source": "Translate this text:\n{source}",
    "reference": "Say this in other words:\n{reference}",
    "none": "Translate the text.",
}
_CARRIED = {"error_score": Value("float64"), "rater": Value("string")}


def load_mqm(
    files: str | Path = "",
    *,
    prompt: Literal["source", "reference", "none"] = "source",
    reference: str = "refB",
    least_margin: float = 0.0,
    same_rater: bool = False,
) -> Marked:
    """Read the translations that experts judged, and every pair of two translations of a segment with its margin.

    The score of a translation is the sum of its errors' weights: 25 for Non-translation, 5 for other major errors, 0.1
    for minor ones of Fluency/Punctuation, 1 for other minor ones, 0 for neutral ones. The chosen one of a pair has the
    lower score.

    Args:
        files: folder with `mqm_ted_zhen.tsv`, or any table in its format; empty for the published address (the commit
            and SHA-256 of `sources.MQM_TED_ZHEN`).
        prompt: what stands before a translation: the segment in its own language, the translation of the system
            `reference` (which is then none of the answers, and segments without it are left out), or the same words
            for all.
        reference: system whose translation is the prompt; "refB" is the better of the two references of TED's talks.
        least_margin: smallest difference of two scores that makes a pair; at 0 every one does.
        same_rater: only pairs that one rater judged. Raters differ in strictness, and most pairs have two.

    Returns:
        pairs: with `margin` (the difference of the scores), `chosen_spans`, `rejected_spans`, and as `source` whether
            "one rater" or "two raters" judged. `prompt_id` is that of the segment in its own language.
        responses: every translation, its spans labelled by category, with `source` (the system), `error_score` and
            `rater`. An omission, or an error of the source text, has no place in the translation: it counts in the
            score alone.
        A row that is refused costs the whole translation, whose score would lack it.

    Raises:
        FileNotFoundError, ConnectionError: the file cannot be had; the message says how to get it.
        ValueError: an unknown `prompt`, no such table, another file at the address, or not a single usable pair.
    """
    if prompt not in ASKED:
        raise ValueError(f"prompt={prompt!r} is none of {', '.join(ASKED)}; choose one of them")
    with opened(MQM_TED_ZHEN, files) as (path, notes):
        outputs, refusals = read_table(path, f"{NAME} (translations)")
    whole = {key: output for key, output in outputs.items() if output.whole}
    asked = _prompts(whole, prompt, reference)
    used = {key: one for key, one in whole.items() if key[:2] in asked}
    if prompt == "reference":
        used = {key: one for key, one in used.items() if key[2] != reference}
    rows = [(one.line, _response(key, one, asked[key[:2]])) for key, one in used.items()]
    responses, of_responses = collect_spans(f"{NAME} (translations)", rows, carry=_CARRIED)
    dropped: Counter[str] = Counter()
    pairs, of_pairs = collect_preferences(f"{NAME} (pairs)", _pairs(used, asked, least_margin, same_rater, dropped))
    of_pairs.dropped |= dropped
    of_responses.refusals[:0] = refusals
    of_responses.notes[:0] = [*notes, *_notes(outputs, used)]
    of_pairs.notes[:0] = [*notes, f"pairs with a difference of at least {least_margin:g}, of {len(used)} translations"]
    segments = {one.line: one.source for one in used.values()}
    return Marked(identified(pairs, segments), identified(responses, segments), (of_pairs, of_responses))


def _prompts(outputs: dict[Key, Translation], prompt: str, reference: str) -> dict[tuple[str, str], str]:
    """Return what is asked of each segment."""
    references = {key[:2]: one.text for key, one in outputs.items() if key[2] == reference}
    if prompt == "reference":
        if not references:
            systems = ", ".join(sorted({system for _, _, system, _ in outputs}))
            raise ValueError(f"no translation by the system {reference!r}; name one of {systems} as reference=")
        return {segment: ASKED[prompt].format(reference=text) for segment, text in references.items()}
    return {key[:2]: ASKED[prompt].format(source=one.source) for key, one in outputs.items()}


def _response(key: Key, output: Translation, asked: str) -> dict[str, Any]:
    _, _, system, rater = key
    row = {"prompt": asked, "response": output.text, "spans": output.spans, "source": system}
    return row | {"error_score": output.score, "rater": rater}


def _pairs(
    outputs: dict[Key, Translation],
    asked: dict[tuple[str, str], str],
    least: float,
    same_rater: bool,
    dropped: Counter[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield every two translations of a segment, the one with the lower score as chosen; count the others."""
    segments: dict[tuple[str, str], list[tuple[Key, Translation]]] = {}
    for key, output in outputs.items():
        segments.setdefault(key[:2], []).append((key, output))
    for segment, found in segments.items():
        for (one, first), (other, second) in combinations(found, 2):
            margin = round(abs(first.score - second.score), 6)
            if one[2] == other[2] or (same_rater and one[3] != other[3]):
                continue
            if margin and (margin < least or first.text == second.text):
                dropped["too small a difference" if margin < least else "one text, judged differently"] += 1
                continue
            chosen, rejected = (first, second) if first.score <= second.score else (second, first)
            row = {"prompt": asked[segment], "chosen": chosen.text, "rejected": rejected.text, "margin": margin}
            row |= {"chosen_spans": chosen.spans, "rejected_spans": rejected.spans}
            yield first.line, row | {"source": "one rater" if one[3] == other[3] else "two raters"}


def _notes(outputs: dict[Key, Translation], used: dict[Key, Translation]) -> Iterable[str]:
    if lost := sum(not output.whole for output in outputs.values()):
        yield f"{lost} translations left out, of which a row was refused"
    if other := sum(output.whole for output in outputs.values()) - len(used):
        yield f"{other} translations left out, which are references or of segments without one"
    if unplaced := sum(output.unplaced for output in used.values()):
        yield f"{unplaced} errors without a place in the translation (omissions, errors of the source) count in scores"
