"""Messages in the ways that tools write them, each to {"role", "content"}."""

from collections.abc import Collection
from typing import Any

from icrm_lib.preferences.forms.columns import check_unread
from icrm_lib.preferences.forms.formatted import transcript
from icrm_lib.rows import BadRow, type_name
from icrm_lib.tokenization import Message

# ShareGPT, Vicuna and Gemini say human, gpt and model; Open Assistant prompter; OpenAI developer.
_ROLES = {
    **{"human": "user", "prompter": "user", "User": "user", "Human": "user", "USER": "user"},
    **{"gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "Assistant": "assistant"},
    **{"developer": "system", "ASSISTANT": "assistant", "System": "system"},
}
_KNOWN = ("system", "user", "assistant")


def messages(value: Any, key: str, role: str, ignore: Collection[str] = ()) -> list[Message]:
    """Return a text, one message or a list of messages as messages with text alone.

    Args:
        value: what stands under the key. A text becomes one message, a transcript (Human: ... Assistant: ...) several.
        key: of the row, for messages.
        role: of a plain text: "user" or "assistant".
        ignore: keys of messages whose text may be left out.
    """
    if isinstance(value, str):
        return transcript(value, key, reply=role == "assistant") or [{"role": role, "content": value}]
    if isinstance(value, dict):
        if "role" not in value and "from" not in value:
            raise BadRow(f"wrong type in {key!r}", f"found {type_name(value)}; give a text or a list of messages")
        value = [value]
    if not isinstance(value, list):
        raise BadRow(f"wrong type in {key!r}", f"found {type_name(value)}; give a text or a list of messages")
    if not value:
        raise BadRow(f"empty conversation in {key!r}", 'give messages like {"role": "user", "content": "..."}')
    return [_message(message, key, ignore) for message in value]


def _message(message: Any, key: str, ignore: Collection[str]) -> Message:
    if not isinstance(message, dict):
        raise BadRow(f"wrong type in {key!r}", f"a message is {type_name(message)}; give objects with role and content")
    if message.keys() >= {"from", "value"} and message.keys().isdisjoint({"role", "content"}):
        message = {**{k: v for k, v in message.items() if k not in ("from", "value")}, **_named(message)}
    _check_plain(message, key, ignore)
    content = _joined(message.get("content"))
    for part, value in (("role", message.get("role")), ("content", content)):
        if not isinstance(value, str):
            found = type_name(message[part]) if part in message else f"no {part!r}"
            raise BadRow(f"message without text in {key!r}", f"a message has {found} for {part!r}; give text")
    return {"role": _ROLES.get(message["role"], message["role"]), "content": content}


def _named(message: dict[str, Any]) -> dict[str, Any]:
    return {"role": message["from"], "content": message["value"]}


def _joined(content: Any) -> Any:
    """Return text parts ([{"type": "text", "text": ...}]) as one text, everything else as it is."""
    if not isinstance(content, list) or not content:
        return content
    plain = all(
        isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)
        for part in content
    )
    return "".join(part["text"] for part in content) if plain else content


def _check_plain(message: dict[str, Any], key: str, ignore: Collection[str]) -> None:
    tools = [name for name in ("tool_calls", "function_call") if message.get(name)]
    if tools or message.get("role") in ("tool", "function"):
        found = tools[0] if tools else f"role {message['role']}"
        # Left out, it would make another conversation of this one.
        raise BadRow(
            f"tool call in {key!r}",
            f"a message has {found!r}, which is no text; write calls and results into 'content', or drop the row",
        )
    beside = {name: value for name, value in message.items() if name not in ("role", "content", *ignore)}
    check_unread(beside, where=f" of a message in {key!r}")


def check_roles(turns: list[Message], key: str) -> None:
    """Raise `BadRow` unless user and assistant take turns and the assistant has the last one."""
    roles = [turn["role"] for turn in turns]
    if unknown := [role for role in roles if role not in _KNOWN]:
        raise BadRow(f"unknown role in {key!r}", f"found {unknown[0][:40]!r}; use system, user, assistant")
    if roles[-1] != "assistant":
        raise BadRow(
            f"{key!r} does not end with an assistant turn", f"the last turn is {roles[-1]!r}; end with the reply"
        )
    talk = roles[1:] if roles[0] == "system" else roles
    if talk != ["user", "assistant"] * (len(talk) // 2):
        order = ", ".join(roles[:6]) + (", ..." if len(roles) > 6 else "")
        raise BadRow(
            f"roles do not alternate in {key!r}",
            f"found {order}; after an optional system turn: user, assistant, ... (join turns of one speaker)",
        )


def difference(left: list[Message], right: list[Message]) -> str:
    """Say where two conversations part."""
    for i, (a, b) in enumerate(zip(left, right, strict=False), 1):
        if a != b:
            one, other = (f"{m['role']} {m['content'][:30]!r}" for m in (a, b))
            return f"turn {i} is {one} in one, {other} in the other"
    return f"one has {len(left)} turns, the other {len(right)}"
