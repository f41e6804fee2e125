"""The prompt of a row: its own column, with the system prompt, the history and the input that stand beside it."""

import difflib
import os
from typing import Any

from icrm_lib.preferences.forms.columns import Row
from icrm_lib.preferences.forms.messages import messages
from icrm_lib.preferences.forms.ratings import LABEL_KEYS, RANK_KEYS, RATING_KEYS, SPAN_KEYS
from icrm_lib.rows import BadRow, shown, type_name
from icrm_lib.tokenization import Message

# prompt: TRL; question: orca; instruction: alpaca; query: stack-exchange-paired's kin; input: alone it is the prompt
_KEYS = ("prompt", "question", "instruction", "query", "context_messages", "input")
_SYSTEM = ("system", "system_prompt", "system_message")
LEAST_COMMON = 10  # characters; below it two replies begin alike by chance
# Keys with a meaning of their own, never a misspelt one.
_OWN_KEYS = {"prompt", "chosen", "rejected", "prompt_id", "line", "source", "margin", "choice"}
_OWN_KEYS |= set(sum((*RATING_KEYS, *RANK_KEYS, SPAN_KEYS), LABEL_KEYS))


def prompt_of(row: Row, *, needed: bool = True) -> list[Message]:
    """Return the prompt with all that belongs before it; [] where there is none and none is needed."""
    key = row.first(_KEYS)
    if key is None or (not needed and row.values[key] == ""):
        if needed:
            require(row, "prompt")
        return []
    turns = messages(row.get(key), key, "user", row.ignore)
    if key != "input" and row.has("input"):
        turns = _with_input(turns, row.get("input"))
    return _with_system(row, [*_history(row), *turns])


def _with_input(turns: list[Message], given: Any) -> list[Message]:
    """alpaca: the input follows the instruction on a line of its own."""
    if not isinstance(given, str):
        raise BadRow("wrong type in 'input'", f"found {type_name(given)}; give a text")
    if not given.strip():
        return turns
    return [*turns[:-1], {**turns[-1], "content": f"{turns[-1]['content']}\n{given}"}]


def _history(row: Row) -> list[Message]:
    """Earlier turns: pairs of question and answer (alpaca, LLaMA-Factory), or messages."""
    history = row.get("history") if row.has("history") else None
    if not history:
        return []
    if isinstance(history, list) and all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        said = zip(("user", "assistant") * len(history), sum(history, []), strict=True)
        return [one for role, text in said for one in messages([{"role": role, "content": text}], "history", role)]
    if isinstance(history, list) and all(isinstance(turn, dict) for turn in history):
        return messages(history, "history", "user", row.ignore)
    raise BadRow("wrong type in 'history'", f"found {type_name(history)}; give pairs [question, answer] or messages")


def _with_system(row: Row, turns: list[Message]) -> list[Message]:
    given = {key: row.get(key) for key in _SYSTEM if row.has(key) and row.values[key] != ""}
    if not given:
        return turns
    for key, text in given.items():
        if not isinstance(text, str):
            raise BadRow(f"wrong type in {key!r}", f"found {type_name(text)}; give a text")
    said = set(given.values()) | {turn["content"] for turn in turns[:1] if turn["role"] == "system"}
    if len(said) > 1:
        raise BadRow("two system prompts", f"they begin {' and '.join(repr(t[:20]) for t in sorted(said))}; keep one")
    return turns if turns[0]["role"] == "system" else [{"role": "system", "content": said.pop()}, *turns]


def require(row: Row, key: str) -> Any:
    """Return what stands under a key; raises `BadRow`, which names the key that may have been meant."""
    if row.values.get(key) is not None:
        return row.get(key)
    if key in row.values:
        raise BadRow(f"{key!r} is null", "fill it or drop the row")
    names = {name.strip().casefold(): name for name in row.values if name not in _OWN_KEYS}
    near = difflib.get_close_matches(key, names, 1)
    have = ", ".join(map(shown, list(row.values)[:8])) or "none"
    remedy = f"rename {names[near[0]]!r} to {key!r}" if near else f"add it (keys here: {have})"
    sides = [row.values.get(name) for name in ("chosen", "rejected")]
    if key == "prompt" and all(isinstance(side, str) for side in sides):
        common = os.path.commonprefix(sides)
        if len(common) >= LEAST_COMMON:
            remedy = f"both replies begin with {common[:30]!r}; write what is the prompt of it under 'prompt'"
    raise BadRow(f"missing key {key!r}", remedy)
