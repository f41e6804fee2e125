"""Spans: places of a response that people marked, each with a label; and the tokens that they touch."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import List, Value

from icrm_lib.preferences.checks import check_characters
from icrm_lib.rows import BadRow, shown, type_name

# A span as it stands in a row: the characters text[start:end], and what is said of them.
SPANS = List({"start": Value("int64"), "end": Value("int64"), "label": Value("string")})
Span = Mapping[str, Any]
_KEYS = ("start", "end", "label")


def read_spans(value: Any, text: str, key: str, *, before: int = 0) -> list[dict[str, Any]] | None:
    """Return the spans of a text in the order of their starts, once each of them fits.

    Args:
        value: a list of {"start", "end", "label"}: the characters text[start:end], Unicode code points as in Python.
            Spans may overlap. An empty list says that nothing is wrong, None that nobody looked.
        text: what the spans lie in.
        key: of the row, for messages.
        before: characters that stood before the text where the spans were made, and were taken off since.

    Raises:
        BadRow: no list of objects with these keys, an offset that is no integer, end <= start, a span that reaches
            outside the text, or a label that is no text.
    """
    if value is None:
        return None
    if not isinstance(value, list | tuple):
        raise BadRow(f"wrong type in {key!r}", f"found {type_name(value)}; give a list of {{start, end, label}}")
    spans = [_span(span, len(text), key, before) for span in value]
    return sorted(spans, key=lambda span: (span["start"], span["end"], span["label"]))


def _span(span: Any, size: int, key: str, before: int) -> dict[str, Any]:
    if not isinstance(span, dict):
        raise BadRow(f"wrong type in {key!r}", f"a span is {type_name(span)}; give objects with start, end and label")
    for name in _KEYS:
        if name not in span:
            have = ", ".join(map(shown, list(span)[:5])) or "none"
            raise BadRow(f"a span without {name!r} in {key!r}", f"its keys are {have}; give start, end and label")
    start, end, label = (span[name] for name in _KEYS)
    for name, offset in (("start", start), ("end", end)):
        if isinstance(offset, bool) or not isinstance(offset, int):
            found = f"{type_name(offset)} {str(offset)[:20]}"
            raise BadRow(f"the {name} of a span in {key!r} is no integer", f"found {found}; count characters from 0")
    if not isinstance(label, str) or not label.strip():
        found = repr(label)[:20] if isinstance(label, str) else type_name(label)
        raise BadRow(f"a span without a label in {key!r}", f"found {found}; say in a few words what is marked")
    check_characters(key, label)
    where = f"the span is {str(start)[:20]}:{str(end)[:20]}"
    if end <= start:
        raise BadRow(f"a span in {key!r} ends before it begins", f"{where}; the end is the first character behind it")
    if start < before or end > before + size:
        limits = f"{before}:{before + size}" if before else f"{size} characters"
        raise BadRow(f"a span in {key!r} reaches outside the text", f"{where}, the text has {limits}; mend its offsets")
    return {"start": start - before, "end": end - before, "label": label}


def token_labels(
    offsets: Sequence[Sequence[tuple[int, int]]], spans: Sequence[Sequence[Span]], labels: Collection[str] = ()
) -> dict[str, list[np.ndarray]]:
    """Say which tokens of each response touch a span, label by label.

    A token counts where at least one of its characters lies inside a span of the label. A closing token has no
    characters and never counts; leave it out (`[:-1]`) of scores and labels before measuring.

    Args:
        offsets: per response, (start, end) of each token in its text: `Tokenized.offsets` of
            `tokenization.tokenize_conversations(..., offsets=True)`. N of them, of T_i tokens.
        spans: per response, its spans. N of them.
        labels: which, in this order; all that occur, sorted, when empty.

    Returns:
        label -> one bool array a response, each of shape (T_i,).

    Raises:
        ValueError: another number of responses in `offsets` than in `spans`.
    """
    if len(offsets) != len(spans):
        raise ValueError(f"offsets of {len(offsets)} responses but spans of {len(spans)}; give both of each response")
    labels = labels or sorted({span["label"] for row in spans for span in row})
    places = [np.asarray(row, dtype=np.int64).reshape(-1, 2) for row in offsets]
    return {
        label: [
            _touching(place, [(span["start"], span["end"]) for span in row if span["label"] == label])
            for place, row in zip(places, spans, strict=True)
        ]
        for label in labels
    }


def _touching(places: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    starts, ends = places.T
    touched = np.zeros(len(places), dtype=bool)
    for begin, stop in spans:
        touched |= (starts < stop) & (ends > begin) & (starts < ends)
    return touched
