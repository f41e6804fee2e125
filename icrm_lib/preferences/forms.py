"""The shapes that a row may have, each to the one `Pair`. A new form is a new function, chosen in `read_pair`."""

import difflib
import math
from decimal import Decimal
from typing import Any

from icrm_lib.preferences.checks import CHECKS, Pair
from icrm_lib.rows import BadRow, shown, type_name
from icrm_lib.tokenization import Message

RATING_KEYS = (
    ("chosen_rating", "rejected_rating"),
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
)
LABEL_KEYS = ("chosen_label", "rejected_label")  # 1 where the response is right, 0 where it is wrong
# Keys with a meaning of their own, never a misspelt one.
_OWN_KEYS = {"prompt", "chosen", "rejected", "prompt_id", "line", "source", "margin", *sum(RATING_KEYS, LABEL_KEYS)}
SHAREGPT = (
    "the ShareGPT form: rename 'conversations' to 'prompt', 'from' to 'role' (human: user, gpt: assistant), 'value' to "
    "'content', and give the two replies as 'chosen' and 'rejected'"
)


def read_pair(row: Any) -> Pair:
    """Return the pair of a row, whatever its form, once every check holds; raises `BadRow` otherwise."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("not a JSON object", f"found {type_name(row)}; write each row as {{...}}")
    pair = _chosen_and_rejected(row)
    for check in CHECKS:
        check(pair)
    return pair


def _chosen_and_rejected(row: dict) -> Pair:
    """Read `chosen` and `rejected`: two replies to `prompt`, or two conversations that part at the last turn."""
    (prompt, chosen), (other, rejected) = (_conversation(row, key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise BadRow(
            "chosen and rejected have different prompts",
            f"{difference(prompt, other)}; both must be equal up to the final reply",
        )
    source = row.get("source")
    return Pair(prompt, chosen, rejected, rating_margin(row), source if isinstance(source, str) else None)


def _conversation(row: dict, key: str) -> tuple[list[Message], str]:
    """Return everything before the final reply of `row[key]`, and that reply."""
    turns = messages(require(row, key), key, "assistant")
    if turns[0]["role"] == "assistant" or row.get("prompt") is not None:
        prompt = messages(require(row, "prompt"), "prompt", "user")
    else:
        prompt = []
    if turns[0]["role"] == "assistant":
        turns = prompt + turns
    elif prompt and prompt != turns[:-1] and not (len(prompt) == 1 and prompt[0] in turns[:-1]):
        raise BadRow(
            f"{key!r} does not continue the prompt", f"{difference(prompt, turns)}; drop one of the two prompts"
        )
    check_roles(turns, key)
    return turns[:-1], turns[-1]["content"]


def require(row: dict, key: str) -> Any:
    """Return what stands under a key; raises `BadRow`, which names the key that may have been meant."""
    if row.get(key) is not None:
        return row[key]
    if key in row:
        raise BadRow(f"{key!r} is null", "fill it or drop the row")
    if "conversations" in row:
        raise BadRow(f"missing key {key!r}", f"the row has {SHAREGPT}")
    names = {name.strip().casefold(): name for name in row if name not in _OWN_KEYS}
    near = difflib.get_close_matches(key, names, 1)
    have = ", ".join(map(shown, list(row)[:8])) or "none"
    remedy = f"rename {names[near[0]]!r} to {key!r}" if near else f"add it (keys here: {have})"
    raise BadRow(f"missing key {key!r}", remedy)


def messages(value: Any, key: str, role: str) -> list[Message]:
    """Return a text as one message of this role, and a list of messages as it is, without other keys."""
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        _check_plain(value, key)
    if not isinstance(value, list):
        raise BadRow(f"wrong type in {key!r}", f"found {type_name(value)}; give a text or a list of messages")
    if not value:
        raise BadRow(f"empty conversation in {key!r}", 'give messages like {"role": "user", "content": "..."}')
    for message in value:
        if not isinstance(message, dict):
            raise BadRow(
                f"wrong type in {key!r}", f"a message is {type_name(message)}; give objects with role and content"
            )
        _check_plain(message, key)
        for part in ("role", "content"):
            if not isinstance(message.get(part), str):
                found = type_name(message[part]) if part in message else f"no {part!r}"
                raise BadRow(f"message without text in {key!r}", f"a message has {found} for {part!r}; give text")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _check_plain(message: dict, key: str) -> None:
    if message.keys() >= {"from", "value"} and message.keys().isdisjoint({"role", "content"}):
        raise BadRow(f"ShareGPT keys in {key!r}", f"a message has {SHAREGPT}")
    tools = [name for name in ("tool_calls", "function_call") if message.get(name)]
    if tools or message.get("role") in ("tool", "function"):
        found = tools[0] if tools else f"role {message['role']}"
        # Left out, it would make another conversation of this one.
        raise BadRow(
            f"tool call in {key!r}",
            f"a message has {found!r}, which is no text; write calls and results into 'content', or drop the row",
        )


def check_roles(turns: list[Message], key: str) -> None:
    """Raise `BadRow` unless user and assistant take turns and the assistant has the last one."""
    roles = [turn["role"] for turn in turns]
    if unknown := [role for role in roles if role not in ("system", "user", "assistant")]:
        raise BadRow(f"unknown role in {key!r}", f"found {unknown[0][:40]!r}; use system, user, assistant")
    if roles[-1] != "assistant":
        raise BadRow(
            f"{key!r} does not end with an assistant turn", f"the last turn is {roles[-1]!r}; end with the reply"
        )
    talk = roles[1:] if roles[0] == "system" else roles
    if talk != ["user", "assistant"] * (len(talk) // 2):
        order = ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")
        raise BadRow(
            f"roles do not alternate in {key!r}", f"found {order}; after an optional system turn: user, assistant, ..."
        )


def difference(left: list[Message], right: list[Message]) -> str:
    """Say where two conversations part."""
    for i, (a, b) in enumerate(zip(left, right, strict=False), 1):
        if a != b:
            one, other = (f"{m['role']} {m['content'][:30]!r}" for m in (a, b))
            return f"turn {i} is {one} in one, {other} in the other"
    return f"one has {len(left)} turns, the other {len(right)}"


def rating_margin(row: dict) -> float | None:
    """Return by how much the chosen reply is rated higher, or None where the row does not say."""
    if row.get("margin") is not None:
        return as_number(row["margin"], "margin")
    for keys in RATING_KEYS:
        ratings = [as_number(row[key], key) for key in keys if row.get(key) is not None]
        if len(ratings) == 2:
            return ratings[0] - ratings[1]
    return None


def as_number(value: Any, key: str) -> float:
    """Return a finite number as a float; `key` is for the `BadRow` that anything else is."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):  # decimals come from Parquet
        found = f"str {value[:20]!r}" if isinstance(value, str) else type_name(value)
        raise BadRow(f"wrong type in {key!r}", f"found {found}; give a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(f"{key!r} is not finite", f"found {str(value)[:20]}; give a finite number or leave the rating out")
    return number
