"""Texts and lists of messages as they stand under a key of a row."""

from typing import Any

from icrm_lib.rows import BadRow, type_name
from icrm_lib.tokenization import Message

SHAREGPT = (
    "the ShareGPT form: rename 'conversations' to 'prompt', 'from' to 'role' (human: user, gpt: assistant), 'value' to "
    "'content', and give the two replies as 'chosen' and 'rejected'"
)


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
