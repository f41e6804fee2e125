"""A row of responses of which each is known to be right or wrong, read and checked as preference rows are."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from icrm_lib.preferences.checks import check_characters, check_visible
from icrm_lib.preferences.forms.columns import Row
from icrm_lib.preferences.forms.messages import check_roles, messages
from icrm_lib.preferences.forms.prompts import prompt_of, require
from icrm_lib.preferences.prompts import identify_prompt, normal_text
from icrm_lib.rows import BadRow, type_name
from icrm_lib.tokenization import Conversation

# What judges the responses or names where they come from: nobody had it before writing one.
_REFERENCE = re.compile(r"(.*_)?(answers?|solutions?|gold|truth|targets?|references?|predictions?|generators?|subject)")
_OUTCOMES = {"true": True, "1": True, "false": False, "0": False}


@dataclass(frozen=True)
class Labelled:
    """The prompt as a conversation that ends with the user's turn; its responses; whether each is right."""

    prompt: Conversation
    responses: list[str]
    correct: list[bool]

    def answers(self) -> Iterator[tuple[tuple[str, str], bool]]:
        """Yield (prompt, response), equal for what nobody could tell apart, and whether it is right."""
        prompt = identify_prompt(self.prompt)
        for response, right in zip(self.responses, self.correct, strict=True):
            yield (prompt, normal_text(response.replace("\r\n", "\n"))), right


def read_labelled(row: Any, ignore: Collection[str] = ()) -> Labelled:
    """Return a row {"prompt", "responses": [...], "correct": [...]} once every check holds; raises `BadRow`.

    What stands beside the prompt (`system`, `history`, `input`) belongs to it; other text is refused, see `forms`,
    unless `ignore` names its key or the name says that it is a reference (`answer`, `gold_solution`, ...).
    """
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("not a JSON object", f"found {type_name(row)}; write each row as {{...}}")
    row = Row(row, [*ignore, *filter(_REFERENCE.fullmatch, row)])
    prompt = prompt_of(row)
    responses, correct = (_listed(row, key) for key in ("responses", "correct"))
    if len(responses) != len(correct):
        raise BadRow(
            "not one outcome for each response",
            f"{len(responses)} responses and {len(correct)} outcomes; give as many of one as of the other",
        )
    responses = [_response(response) for response in responses]
    check_roles([*prompt, {"role": "assistant", "content": responses[0]}], "prompt")
    for i, message in enumerate(prompt):
        check_characters("prompt", message["content"])
        if i or message["role"] != "system":  # an empty system turn means something: no default system prompt
            check_visible("prompt", message["content"])
    labelled = Labelled(prompt, responses, [_outcome(value) for value in correct])
    _check_consistent(labelled)
    row.check_rest({text.strip() for text in [*responses, *(message["content"] for message in prompt)]})
    return labelled


def _listed(row: Row, key: str) -> list:
    if key not in row.values and isinstance(row.values.get(key.removesuffix("s")), str):
        raise BadRow(
            f"missing key {key!r}",
            f"the row has one {key.removesuffix('s')!r}; write all responses to a prompt into one row, as lists "
            "'responses' and 'correct'",
        )
    value = require(row, key)
    if not isinstance(value, list):
        raise BadRow(f"wrong type in {key!r}", f"found {type_name(value)}; give a list, one entry a response")
    if not value:
        raise BadRow(f"empty list in {key!r}", "give at least one response and its outcome, or drop the row")
    return value


def _response(value: Any) -> str:
    turns = messages(value, "responses", "assistant")
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        raise BadRow(
            "a response is no single reply", f"found {len(turns)} turns; give the assistant's last turn, or its text"
        )
    text = turns[0]["content"]
    check_characters("responses", text)
    check_visible("responses", text)
    return text


def _outcome(value: Any) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().casefold() in _OUTCOMES:
        return _OUTCOMES[value.strip().casefold()]
    found = repr(value)[:40] if isinstance(value, str | int | float) else type_name(value)
    raise BadRow("an outcome is neither true nor false", f"found {found}; give true or false, or 1 or 0")


def _check_consistent(labelled: Labelled) -> None:
    known: dict[tuple[str, str], bool] = {}
    for (answer, right), response in zip(labelled.answers(), labelled.responses, strict=True):
        if known.setdefault(answer, right) != right:
            raise BadRow(
                "the same response is right and wrong", f"it is {response[:40]!r}; correct its outcome or drop the row"
            )
