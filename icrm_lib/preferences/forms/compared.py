"""Rows with two replies and a verdict, in the forms of public data sets, each known by its columns."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

from icrm_lib.preferences.forms.columns import Row, check_unread
from icrm_lib.preferences.forms.messages import messages
from icrm_lib.preferences.forms.prompts import prompt_of
from icrm_lib.preferences.forms.ratings import Tie, as_number, is_tie
from icrm_lib.preferences.forms.sides import Sides, sides_of
from icrm_lib.rows import BadRow, type_name
from icrm_lib.tokenization import Message


class Verdict(NamedTuple):
    """What a row says of its two replies.

    Attributes:
        first: whether the first is the better one.
        margin: by how much, where the row says; None else.
    """

    first: bool
    margin: float | None = None


class Form(NamedTuple):
    """A form of two replies.

    Attributes:
        name: of the data set that has it.
        replies: their columns.
        verdict: the column that decides.
        read: of the verdict's value.
    """

    name: str
    replies: tuple[str, str]
    verdict: str
    read: Callable[[Any], Verdict]


def _first_of_zero(value: Any) -> Verdict:
    """0 or 1: the number of the better one."""
    number = as_number(value, "verdict")
    if number not in (0, 1):
        raise BadRow("unknown verdict", f"found {value!r}; give 0 or 1, the number of the better reply")
    return Verdict(number == 0)


def _first_of_one(value: Any) -> Verdict:
    """1 or 2: the number of the better one; 0 is a tie."""
    if isinstance(value, str):
        return _named(value)
    number = as_number(value, "verdict")
    if number == 0:
        raise Tie
    if number not in (1, 2):
        raise BadRow("unknown verdict", f"found {value!r}; give 1 or 2, the number of the better reply")
    return Verdict(number == 1)


def _one_for_first(value: Any) -> Verdict:
    """1 where the first is preferred (SHP)."""
    return Verdict(not _first_of_zero(value).first)


def _signed(value: Any) -> Verdict:
    """Negative: the first is better, by so much (HelpSteer: -3 to 3); 0 is a tie."""
    number = as_number(value, "verdict")
    if number == 0:
        raise Tie
    return Verdict(number < 0, abs(number))


def _named(value: Any) -> Verdict:
    """model_a, A, response_1, ... or a tie in words."""
    if not isinstance(value, str):
        return _first_of_zero(value)
    if is_tie(value):
        raise Tie
    last = value.strip().lower().replace("-", "_").split("_")[-1].split()[-1:]
    if last and last[0] in ("a", "0", "left", "first"):
        return Verdict(True)
    if last and last[0] in ("b", "right", "second", "2"):
        return Verdict(False)
    if last and last[0] == "1":
        return Verdict(True)
    raise BadRow("unknown verdict", f"found {value[:30]!r}; name the better reply or a tie")


# The first whose columns are there is taken.
FORMS = (
    Form("SHP", ("human_ref_A", "human_ref_B"), "labels", _one_for_first),
    Form("PKU-SafeRLHF (by better_response_id)", ("response_0", "response_1"), "better_response_id", _first_of_zero),
    Form("HelpSteer 2 (preference_strength)", ("response_1", "response_2"), "preference_strength", _signed),
    Form("HelpSteer 3", ("response1", "response2"), "overall_preference", _signed),
    Form("Chatbot Arena", ("conversation_a", "conversation_b"), "winner", _named),
    Form("two responses and a winner", ("response_a", "response_b"), "winner", _named),
    Form("OffsetBias", ("output_1", "output_2"), "label", _first_of_one),
    Form("AlpacaFarm", ("output_1", "output_2"), "preference", _first_of_one),
    Form("two responses and a preference", ("response_1", "response_2"), "preference", _first_of_one),
    Form("two responses and a preference", ("response_a", "response_b"), "preference", _named),
    Form("two responses and a label", ("response_0", "response_1"), "label", _first_of_zero),
    Form("two responses and a winner", ("response_0", "response_1"), "winner", _first_of_zero),
    Form("two responses and a winner", ("response_1", "response_2"), "winner", _first_of_one),
    Form("two answers and a winner", ("answer_a", "answer_b"), "winner", _named),
    Form("two answers and a label", ("answer_0", "answer_1"), "label", _first_of_zero),
    Form("two completions and a winner", ("completion_a", "completion_b"), "winner", _named),
)
REPLIES = tuple(dict.fromkeys(form.replies for form in FORMS))


def form_of(row: Row) -> Form | None:
    """Return the form of a row with two replies and a verdict, None where it has none of them."""
    return next((form for form in FORMS if all(key in row.values for key in (*form.replies, form.verdict))), None)


def compared(row: Row, form: Form) -> tuple[list[Sides], float | None]:
    """Read two replies and their verdict; returns the pair and its margin.

    Raises:
        Tie: neither is preferred.
        BadRow: an unknown verdict.
    """
    value = row.get(form.verdict)
    if value is None:
        raise Tie
    try:
        verdict = form.read(value)
    except BadRow as bad:
        raise BadRow(f"verdict {form.verdict!r} cannot be read", str(bad).partition("; ")[2] or str(bad)) from bad
    if form.name == "SHP" and row.has("score_A", "score_B") and row.get("score_A") == row.get("score_B"):
        raise Tie
    values = [row.get(key) for key in form.replies]
    if form.replies[0] == "conversation_a":
        values = [json.loads(value) if _is_json_list(value) else value for value in values]
        return [
            _ordered(*(messages(v, k, "user", row.ignore) for v, k in zip(values, form.replies, strict=True)), verdict)
        ], verdict.margin
    prompt = _prompt(row, form)
    turns = [
        [*prompt, *messages(value, key, "assistant", row.ignore)]
        for value, key in zip(values, form.replies, strict=True)
    ]
    return [_ordered(*turns, verdict)], verdict.margin


def _is_json_list(value: Any) -> bool:
    try:
        return isinstance(value, str) and isinstance(json.loads(value), list)
    except ValueError:
        return False


def is_contrary(row: Row, form: Form, sides: Sides) -> bool:
    """Whether SHP's scores say the opposite of its label."""
    if form.name != "SHP" or not row.has("score_A", "score_B"):
        return False
    try:
        higher_a = as_number(row.get("score_A"), "score_A") > as_number(row.get("score_B"), "score_B")
    except BadRow:
        return False
    return higher_a != (sides.chosen == row.get("human_ref_A"))


def _prompt(row: Row, form: Form) -> list[Message]:
    key = {"SHP": "history", "HelpSteer 3": "context"}.get(form.name)
    if key and row.has(key):
        return messages(row.get(key), key, "user", row.ignore)
    return prompt_of(row)


def _ordered(first: list[Message], second: list[Message], verdict: Verdict) -> Sides:
    return sides_of(first, second) if verdict.first else sides_of(second, first)


# Forms with columns of their own


def is_webgpt(row: Row) -> bool:
    """WebGPT comparisons: question.full_text, answer_0 / answer_1, score_0 / score_1."""
    return row.has("question", "answer_0", "answer_1") and "score_0" in row.values and "score_1" in row.values


def webgpt(row: Row) -> tuple[list[Sides], float | None]:
    """Read a row of WebGPT; see `is_webgpt`."""
    question = row.get("question")
    text = question
    if isinstance(question, dict):
        text = question.get("full_text")
        check_unread({k: v for k, v in question.items() if k not in ("full_text", *row.ignore)}, where=" of 'question'")
    scores = [as_number(row.get(key), key) for key in ("score_0", "score_1")]
    if scores[0] == scores[1]:
        raise Tie
    prompt = messages(text, "question", "user")
    turns = [[*prompt, *messages(row.get(key), key, "assistant")] for key in ("answer_0", "answer_1")]
    return [_ordered(*turns, Verdict(scores[0] > scores[1]))], abs(scores[0] - scores[1])


def is_summaries(row: Row) -> bool:
    """summarize-from-feedback: info (a post or an article), two summaries, and choice, the number of the better one."""
    return row.has("info", "summaries") and "choice" in row.values


def summaries(row: Row) -> tuple[list[Sides], float | None]:
    """Read a row of summarize-from-feedback, its prompt as the paper writes it (2009.01325); see `is_summaries`."""
    info, given, choice = row.get("info"), row.get("summaries"), row.get("choice")
    if not isinstance(info, dict) or not isinstance(given, list) or len(given) != 2:
        raise BadRow(
            "wrong type in 'summaries'", f"found {type_name(given)}; give two summaries, and info as an object"
        )
    if choice is None:
        raise Tie
    read = {"subreddit", "title", "post", "article", "text", *row.ignore}
    for item, name in ((info, "info"), *((one, "summaries") for one in given if isinstance(one, dict))):
        check_unread({k: v for k, v in item.items() if k not in read}, where=f" of {name!r}")
    parts = [("SUBREDDIT: r/", "subreddit"), ("TITLE: ", "title"), ("POST: ", "post"), ("", "article")]
    text = "\n\n".join(
        front + info[key] for front, key in parts if isinstance(info.get(key), str) and info[key].strip()
    )
    prompt = [{"role": "user", "content": f"{text}\n\nTL;DR:"}]
    texts = [summary.get("text") if isinstance(summary, dict) else summary for summary in given]
    turns = [[*prompt, *messages(text, "summaries", "assistant")] for text in texts]
    return [_ordered(*turns, _first_of_zero(choice))], None


def is_kaggle_arena(row: Row) -> bool:
    """LMSYS's competition: prompt, response_a, response_b (JSON lists, one text a turn), winner_model_a / _b / "
    "winner_tie."""
    return all(key in row.values for key in ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b"))


def kaggle_arena(row: Row) -> tuple[list[Sides], float | None]:
    """Read a row of LMSYS's competition; see `is_kaggle_arena`."""
    won = [as_number(row.get(key), key) for key in ("winner_model_a", "winner_model_b")]
    row.get("winner_tie")
    if won[0] == won[1]:
        raise Tie
    prompt, *replies = (_turns(row.get(key), key) for key in ("prompt", "response_a", "response_b"))
    turns = []
    for key, texts in zip(("response_a", "response_b"), replies, strict=True):
        if len(texts) != len(prompt):
            raise BadRow(
                f"{key!r} has another number of turns than the prompt", f"{len(texts)} and {len(prompt)}; drop the row"
            )
        said = [one for both in zip(prompt, texts, strict=True) for one in both]
        turns.append([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)])
    return [_ordered(*turns, Verdict(won[0] > won[1]))], None


def _turns(value: Any, key: str) -> list[str]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = [value]
    if isinstance(value, list) and None in value:
        raise BadRow(
            f"a turn of {key!r} is null", f"turn {value.index(None) + 1} of {len(value)}; fill it or drop the row"
        )
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise BadRow(
            f"wrong type in {key!r}", f"found {type_name(value)}; give a text, or a JSON list of texts, one a turn"
        )
    return value


# (is it this form?, its name, how it is read)
OTHERS = (
    (is_webgpt, "WebGPT comparisons", webgpt),
    (is_summaries, "summarize-from-feedback", summaries),
    (is_kaggle_arena, "LMSYS's competition", kaggle_arena),
)
