"""Rows that say which reply is the chosen one, and which the rejected one."""

from typing import Any, NamedTuple

from icrm_lib.preferences.forms.columns import Row
from icrm_lib.preferences.forms.formatted import is_transcript, refuse_formatted, refuse_list
from icrm_lib.preferences.forms.messages import check_roles, difference, messages
from icrm_lib.preferences.forms.prompts import prompt_of, require
from icrm_lib.rows import BadRow
from icrm_lib.tokenization import Message

# chosen, rejected: TRL and most others. The rest: by the same shape under other names.
SIDE_KEYS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("response_w", "response_l"),
    ("y_w", "y_l"),
    ("preferred", "dispreferred"),
    ("preferred_output", "non_preferred_output"),  # OpenAI's fine-tuning
    ("accepted", "rejected"),
    ("response_j", "response_k"),  # stack-exchange-paired
    ("better_response", "worse_response"),
)


class Sides(NamedTuple):
    """A prompt with the chosen and the rejected reply."""

    prompt: list[Message]
    chosen: str
    rejected: str


def is_swift(row: Row) -> bool:
    """ms-swift: `messages` end with the chosen reply; `rejected_response` or `rejected_messages` is the other."""
    return row.has("messages") and (row.has("rejected_response") or row.has("rejected_messages"))


def swift(row: Row) -> list[Sides]:
    """Read a row of ms-swift; see `is_swift`."""
    turns = messages(row.get("messages"), "messages", "user", row.ignore)
    check_roles(turns, "messages")
    if row.has("rejected_messages"):
        other = messages(row.get("rejected_messages"), "rejected_messages", "user", row.ignore)
        other = other if other[0]["role"] != "assistant" else [*turns[:-1], *other]
        check_roles(other, "rejected_messages")
    else:
        other = [*turns[:-1], *messages(row.get("rejected_response"), "rejected_response", "assistant", row.ignore)]
    return [sides_of(turns, other)]


def keys_of(row: Row) -> tuple[str, str] | None:
    """Return the names under which a row has its two sides, None where it has not."""
    for keys in SIDE_KEYS:
        if keys[0] in row.values and keys[1] in row.values:
            return keys
    return None


def two_sides(row: Row, keys: tuple[str, str] = SIDE_KEYS[0]) -> list[Sides]:
    """Read replies to a prompt, or conversations that part at the last turn.

    The prompt may stand in `messages` (axolotl) or `conversations` (LLaMA-Factory's ShareGPT form). Several replies on
    a side (RewardBench 2) give every pair of a chosen and a rejected one.
    """
    chosen, rejected = (_values(require(row, key)) for key in keys)
    for other in ("messages", "conversations", "conversation"):  # else they hold a whole conversation once more
        if row.first(("prompt", "question", "instruction", "query")) is None and _asks(row, other):
            prompt = messages(row.get(other), other, "user", row.ignore)
            row.values = {**row.values, "prompt": prompt}
            break
    needed = any(_is_reply(value) for value in (*chosen, *rejected))
    given = prompt_of(row, needed=needed)
    pairs = []
    for one in chosen:
        for two in rejected:
            (prompt, reply), (second, worse) = (
                _conversation(row, key, value, given) for key, value in ((keys[0], one), (keys[1], two))
            )
            if prompt != second:
                raise BadRow(
                    "chosen and rejected have different prompts",
                    f"{difference(prompt, second)}; both must be equal up to the final reply",
                )
            pairs.append(Sides(prompt, reply, worse))
    return pairs


def _values(value: Any) -> list[Any]:
    several = isinstance(value, list) and value and all(isinstance(item, str) for item in value)
    return value if several else [value]


def _asks(row: Row, key: str) -> bool:
    """Whether a column holds a conversation that waits for a reply."""
    value = row.values.get(key)
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        return False
    return value[-1].get("role", value[-1].get("from")) in ("user", "human", "prompter")


def _is_reply(value: Any) -> bool:
    """Whether a side is a reply without its prompt: a plain text, or turns that begin with the assistant's."""
    if isinstance(value, str):
        return not is_transcript(value)
    first = value[0] if isinstance(value, list) and value else value
    role = first.get("role", first.get("from")) if isinstance(first, dict) else None
    return role in ("assistant", "gpt", "model", "bot")


def _conversation(row: Row, key: str, value: Any, prompt: list[Message]) -> tuple[list[Message], str]:
    """Return everything before the final reply of one side, and that reply."""
    turns = messages(value, key, "assistant", row.ignore)
    if turns[0]["role"] == "assistant":
        turns = prompt + turns
    else:
        if prompt and not _continues(prompt, turns):
            raise BadRow(
                f"{key!r} does not continue the prompt", f"{difference(prompt, turns)}; drop one of the two prompts"
            )
        if prompt and prompt[0]["role"] == "system" and turns[0]["role"] != "system":
            turns = [prompt[0], *turns]
    check_roles(turns, key)
    return turns[:-1], turns[-1]["content"]


def _continues(prompt: list[Message], turns: list[Message]) -> bool:
    """Whether a conversation holds all that a prompt says: as its turns, as one of them, or as all of them in a row."""
    said = [turn for turn in prompt if turn["role"] != "system"]
    own = [turn for turn in turns[:-1] if turn["role"] != "system"]
    if prompt == turns[:-1] or said == own or (len(said) == 1 and said[0] in own):
        return True
    together = " ".join(" ".join(turn["content"] for turn in own).split())
    return len(said) == 1 and " ".join(said[0]["content"].split()) == together


def sides_of(turns: list[Message], other: list[Message]) -> Sides:
    if turns[:-1] != other[:-1]:
        raise BadRow(
            "chosen and rejected have different prompts",
            f"{difference(turns[:-1], other[:-1])}; both must be equal up to the final reply",
        )
    return Sides(turns[:-1], turns[-1]["content"], other[-1]["content"])


def refuse_formatted_sides(sides: Sides) -> None:
    """Raise `BadRow` where one of the texts has been through a chat template or is a list written as text."""
    for turn in sides.prompt:
        refuse_formatted(turn["content"], "prompt")
        refuse_list(turn["content"], "prompt")
    for text, key in ((sides.chosen, "chosen"), (sides.rejected, "rejected")):
        refuse_formatted(text, key)
    if sides.rejected.strip().startswith("["):  # a list alone on one side is an answer
        refuse_list(sides.chosen, "chosen")
