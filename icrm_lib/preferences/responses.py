"""Responses in which people marked places: rows to a data set, bad ones refused with line, reason and remedy."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from icrm_lib.preferences.checks import check_characters, check_visible
from icrm_lib.preferences.forms.columns import Row
from icrm_lib.preferences.forms.messages import check_roles, messages
from icrm_lib.preferences.forms.prompts import prompt_of, require
from icrm_lib.preferences.loading import opened_rows
from icrm_lib.preferences.prompts import identify_prompt
from icrm_lib.preferences.report import Refusal, Report
from icrm_lib.preferences.spans import SPANS, read_spans
from icrm_lib.rows import BadRow, type_name

_COLUMNS = {
    "prompt": List({"role": Value("string"), "content": Value("string")}),
    "response": Value("string"),
    "spans": SPANS,
    "line": Value("int64"),
    "prompt_id": Value("string"),
    "source": Value("string"),
}


def load_spans(
    source: str | Path,
    *,
    split: str = "train",
    strict: bool = False,
    revision: str | None = None,
    ignore: Collection[str] = (),
) -> tuple[Dataset, Report]:
    """Read responses with the places that people marked; every good row is kept, every bad one reported.

    A row is {"prompt", "response", "spans": [{"start", "end", "label"}]}. A span is the characters
    response[start:end]: Unicode code points counted from 0, as in Python; `end` is the first one behind it. Spans may
    overlap and come in any order; an empty list says that nothing is wrong with the response. `prompt` is a text or a
    list of messages; `system`, `history`, `input` and `source` are read as by `load_preferences`.

    Refused is a row whose offsets do not fit (outside the text, end <= start, no integers), a span without a label, an
    empty response, and text that nothing would read, unless `ignore` names its column.

    Args:
        source, split, strict, revision, ignore: as in `load_preferences`.

    Returns:
        A data set with the columns `prompt` (list of messages), `response` (str), `spans` (list of {"start", "end",
        "label"}, by start), `line` (int, from 1), `prompt_id` (see `load_preferences`), `source` if any row has one;
        and the report, which counts the spans of each label.

    Raises:
        As `load_preferences`.
    """
    name, rows = opened_rows(source, split, revision)
    return collect_spans(name, rows, strict=strict, ignore=ignore)


def collect_spans(
    name: str,
    rows: Iterable[tuple[int, Any]],
    *,
    strict: bool = False,
    carry: Mapping[str, Any] | None = None,
    ignore: Collection[str] = (),
) -> tuple[Dataset, Report]:
    """Read marked responses that come one by one; returns and raises as `load_spans`.

    Args:
        name: of the source, for the report.
        rows: (line, row) as of `rows.file_rows`.
        strict, ignore: see `load_spans`.
        carry: key -> `datasets` feature of further columns, whose values the caller vouches for.
    """
    carry, good, report = dict(carry or {}), [], Report(name)
    for line, row in rows:
        try:
            good.append(_read(row, carry, ignore) | {"line": line})
        except BadRow as bad:
            refusal = Refusal(name, line, bad.reason, bad.remedy)
            if strict:
                raise ValueError(str(refusal)) from bad
            report.refusals.append(refusal)
    report.kept = len(good)
    if not good:
        raise ValueError(f"no usable response:\n{report}")
    report.notes += _notes(good)
    dataset = Dataset.from_list(good, features=Features(_COLUMNS | carry))
    if all(row["source"] is None for row in good):
        dataset = dataset.remove_columns("source")
    dataset.info.description = name
    return dataset, report


def _read(values: Any, carry: Mapping[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    """Return a row's columns but for its line; raises `BadRow`."""
    if isinstance(values, BadRow):
        raise values
    if not isinstance(values, dict):
        raise BadRow("not a JSON object", f"found {type_name(values)}; write each row as {{...}}")
    row = Row(values, ignore)
    prompt, turns = prompt_of(row), messages(require(row, "response"), "response", "assistant", row.ignore)
    check_roles([*prompt, *turns[:1]], "prompt and response")
    if len(turns) > 1:
        raise BadRow("a response is no single reply", f"found {len(turns)} turns; give the last one, or its text")
    response = turns[0]["content"]
    for i, (key, text) in enumerate([*(("prompt", turn["content"]) for turn in prompt), ("response", response)]):
        check_characters(key, text)
        if i or prompt[0]["role"] != "system":  # an empty system turn means something: no default system prompt
            check_visible(key, text)
    spans = read_spans(require(row, "spans"), response, "spans")
    carried = {key: row.get(key) for key in carry}
    source = values.get("source") if isinstance(values.get("source"), str) else None
    check_characters("source", source or "")
    row.check_rest({text.strip() for text in [response, *(turn["content"] for turn in prompt)]})
    columns = {"prompt": prompt, "response": response, "spans": spans, "source": source}
    return columns | {"prompt_id": identify_prompt(prompt)} | carried


def _notes(rows: list[dict[str, Any]]) -> list[str]:
    labels = Counter(span["label"] for row in rows for span in row["spans"])
    marked = sum(bool(row["spans"]) for row in rows)
    shown = ", ".join(f"{count} {label}" for label, count in labels.most_common(10))
    more = f", and {len(labels) - 10} labels more" if len(labels) > 10 else ""
    return [f"{labels.total()} spans in {marked} of {len(rows)} responses" + (f": {shown}{more}" if labels else "")]
