"""What a conversation must be before a chat template sees it: a template fails in its own words, or writes nonsense."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from icrm_lib.tokenization.template import Conversation, Message

WANTED = 'messages like {"role": "user", "content": "..."}'
# Roles of the chat templates in use; one that a template names itself is known, too.
_ROLES = {"system", "developer", "user", "assistant", "tool", "function", "ipython", "environment"}
_MEANT = {"human": "user", "prompter": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


def checked_conversations(conversations: Any, template: str) -> list[Conversation]:
    """Return conversations that end with a reply as lists of messages; see `checked_conversation`."""
    wanted = f"give a list of conversations, each a list of {WANTED}"
    if isinstance(conversations, str | bytes | Mapping) or not isinstance(conversations, Iterable):
        raise ValueError(f"conversations is {_shown(conversations)}; {wanted}")
    items = list(conversations)
    if items and all(isinstance(item, Mapping) for item in items):
        raise ValueError(
            f"conversations is one conversation of {len(items)} messages; put it in a list: [conversation]"
        )
    return [checked_conversation(item, template, f"conversation {i}") for i, item in enumerate(items)]


def checked_conversation(
    value: Any, template: str, name: str = "the conversation", *, reply: bool = True
) -> Conversation:
    """Return a conversation as a list of messages whose content is text (or, beside tool calls, None).

    Text parts (`[{"type": "text", "text": ...}]`) are joined; all other keys of a message stay, for the chat template
    to write as it does.

    Args:
        value: what was given.
        template: source of the chat template; the roles that it names are known.
        name: what messages call the conversation; items count from 0, messages from 1.
        reply: it must end with an assistant turn.

    Raises:
        ValueError: says what was found, where, and what is wanted.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{name} is {_shown(value)}; give a list of {WANTED}")
    messages = [_message(item, template, f"message {i} of {name}") for i, item in enumerate(value, 1)]
    if not messages:
        raise ValueError(f"{name} has no message; give a list of {WANTED}")
    if reply and messages[-1]["role"] != "assistant":
        last = messages[-1]["role"]
        raise ValueError(f"the last turn is {last!r} in {name}, but a reward needs a reply; end with an assistant turn")
    return messages


def _message(value: Any, template: str, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name} is {_shown(value)}; give {WANTED}")
    message = dict(value)
    role = message.get("role")
    if not isinstance(role, str) or not (role in _ROLES or _names(template, role)):
        hint = f" (here {_MEANT[role]!r})" if isinstance(role, str) and role in _MEANT else ""
        raise ValueError(
            f"{name} has {'no role' if role is None else f'the role {role!r:.40}'}; use system, user, assistant{hint} "
            "or another role that the chat template names"
        )
    message["content"] = _content(message, name)
    try:
        text = json.dumps(message, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise ValueError(
            f"{name} holds U+{half:04X}, half a character (an unpaired surrogate), which no tokenizer reads; remove it"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} holds a value that is no JSON ({error}); give texts, numbers, lists and objects"
        ) from error
    return json.loads(text)


def _content(message: Message, name: str) -> str | None:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return content
    if isinstance(content, list | tuple) and content:
        for part in content:
            if not (isinstance(part, Mapping) and isinstance(part.get("text"), str) and part.get("type") == "text"):
                kind = part.get("type") if isinstance(part, Mapping) else _shown(part)
                raise ValueError(
                    f'{name} has a content part {kind!r}; only text is read: {{"type": "text", "text": "..."}}'
                )
        return "".join(part["text"] for part in content)
    found = "no content" if "content" not in message else f"{_shown(content)} as content"
    raise ValueError(f"{name} has {found}; give text (None only beside tool_calls)")


def _names(template: str, role: str) -> bool:
    return bool(role) and (f"'{role}'" in template or f'"{role}"' in template)


def _shown(value: Any) -> str:
    kind = type(value).__name__
    return f"{kind} {value!r:.40}" if isinstance(value, str | bytes | int | float | None) else kind
