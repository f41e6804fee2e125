"""Single responses with a known outcome as token ids, two in a row, as the trainer takes them for `loss="outcome"`."""

from typing import Any

from datasets import Dataset, Features, List, Value

from icrm_lib.preferences.forms import LABEL_KEYS
from icrm_lib.preferences.loading import lines_of, name_of
from icrm_lib.preferences.report import Refusal, Report
from icrm_lib.tokenization import ResponseTooLong, TemplateProblem, Tokenized, tokenize_conversation

_IDS = List(Value("int32"))
_FEATURES = Features(
    {"chosen_ids": _IDS, "rejected_ids": _IDS, "prompt_length": Value("int32")}
    | dict.fromkeys(LABEL_KEYS, Value("float64"))
    | {"line": Value("int64")}
)
ODD = "no other response with a prompt of about this length"


def tokenize_outcomes(
    dataset: Dataset, tokenizer: Any, *, max_length: int | None = 1024, report: Report | None = None
) -> tuple[Dataset, Report]:
    """Tokenise responses of which each is right or wrong, to train on their outcomes one by one.

    The trainer reads two responses a row. Here they need not have one prompt: every response stands in one row, beside
    one whose prompt has as many tokens, or nearly so, the right one as chosen where they differ. The cross-entropy is a
    mean over responses, so it does not matter which two share a row. Split by prompt before, as a row may hold two.

    Where the two prompts differ by some tokens, the row has the longer one's length: that many tokens at the beginning
    of the other response take no part in terms of tokens; the report says how many.

    Args:
        dataset: with the columns `prompt` (list of messages), `response`, `outcome` (1 right, 0 wrong), as of
            `marked.load_process_bench`.
        tokenizer: as returned by `tokenization.prepare_tokenizer`.
        max_length: most tokens of a response with its prompt, or None; a longer prompt loses its beginning.
        report: of reading, to get one of the whole way.

    Returns:
        A data set with the columns `chosen_ids`, `rejected_ids` (lists of int32), `prompt_length` (int32),
        `LABEL_KEYS` (float64, 1 or 0) and `line` (of the chosen one); and the report, which goes on from the given one
        and counts responses.

    Raises:
        ValueError: an unprepared tokenizer, a missing column, an outcome other than 0 or 1, or not a single row.
    """
    if missing := {"prompt", "response", "outcome"} - set(dataset.column_names):
        raise ValueError(f"the data set has no column {sorted(missing)[0]!r}; load it with marked.load_process_bench")
    step = Report(name_of(dataset))
    found = sorted(_tokenized(dataset, tokenizer, max_length, step), key=lambda one: (one[0].prompt_length, one[2]))
    rows, unlike, at = [], 0, 0
    while at + 1 < len(found):
        two = found[at : at + 2]
        start = two[1][0].prompt_length
        if start >= len(two[0][0].input_ids):  # nothing of the first one's response would be left
            at += 1
            continue
        unlike += start - two[0][0].prompt_length
        rows.append(_row(*sorted(two, key=lambda one: -one[1]), start))
        at += 2
    step.kept = 2 * len(rows)
    if left := len(found) - step.kept:
        step.dropped[ODD] = left
    if unlike:
        step.notes.append(f"{unlike} tokens at the beginning of responses take no part in terms of tokens")
    whole = report.followed_by(step) if report else step
    whole.dropped = {**whole.dropped, **step.dropped}  # not the dictionary of the report that was given
    if not rows:
        raise ValueError(f"no two responses to put into a row:\n{whole}")
    tokens = Dataset.from_list(rows, features=_FEATURES)
    tokens.info.description = step.source
    return tokens, whole


def _tokenized(
    dataset: Dataset, tokenizer: Any, max_length: int | None, report: Report
) -> list[tuple[Tokenized, float, int]]:
    """Return tokens, outcome and line of each response that fits; the others go into the report."""
    found = []
    for line, row in zip(lines_of(dataset), dataset.with_format(None), strict=True):
        if row["outcome"] not in (0, 1):
            raise ValueError(f"line {line} has the outcome {row['outcome']!r}: must be 1 (right) or 0 (wrong)")
        talk = [*row["prompt"], {"role": "assistant", "content": row["response"]}]
        try:
            found.append((tokenize_conversation(tokenizer, talk, max_length=max_length), row["outcome"], line))
        except ResponseTooLong as error:
            report.refusals.append(Refusal(report.source, line, "reply too long", str(error)))
        except TemplateProblem as error:
            report.refusals.append(Refusal(report.source, line, "impossible under the chat template", str(error)))
    return found


def _row(one: tuple[Tokenized, float, int], other: tuple[Tokenized, float, int], start: int) -> dict[str, Any]:
    ids = {"chosen_ids": one[0].input_ids, "rejected_ids": other[0].input_ids, "prompt_length": start, "line": one[2]}
    return ids | dict(zip(LABEL_KEYS, (one[1], other[1]), strict=True))
