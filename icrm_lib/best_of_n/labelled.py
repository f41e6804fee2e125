"""A row of responses of which each is known to be right or wrong, read and checked as preference rows are."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from icrm_lib.preferences.checks import check_characters, check_visible
from icrm_lib.preferences.forms import check_roles, messages, require
from icrm_lib.preferences.prompts import identify_prompt, normal_text
from icrm_lib.rows import BadRow, type_name
from icrm_lib.tokenization import Conversation

# Keys of what a reader of the prompt has before the eyes as well, and a reward model would not.
_BESIDE = (
    "system",
    "system_prompt",
    "history",
    "instruction",
    "input",
    "context",
    "documents",
    "tools",
    "image",
    "images",
)
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


def read_labelled(row: Any) -> Labelled:
    """Return a row {"prompt", "responses": [...], "correct": [...]} once every check holds; raises `BadRow`."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("not a JSON object", f"found {type_name(row)}; write each row as {{...}}")
    if beside := [key for key in _BESIDE if row.get(key)]:
        raise BadRow(
            f"{beside[0]!r} beside the prompt",
            "the responses would be scored without it; write it into 'prompt', as a message or text, or drop the key",
        )
    prompt = messages(require(row, "prompt"), "prompt", "user")
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
    return labelled


def _listed(row: dict, key: str) -> list:
    if key not in row and isinstance(row.get(key.removesuffix("s")), str):
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
