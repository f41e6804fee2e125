"""The shapes that a row may have, each to the one `Pair`. A new form is a new function, chosen in `read_pair`."""

import difflib
from typing import Any

from icrm_lib.preferences.checks import CHECKS, Pair
from icrm_lib.preferences.messages import SHAREGPT, check_roles, difference, messages
from icrm_lib.preferences.ratings import LABEL_KEYS, RATING_KEYS, rating_margin
from icrm_lib.rows import BadRow, shown, type_name
from icrm_lib.tokenization import Message

# Keys with a meaning of their own, never a misspelt one.
_OWN_KEYS = {"prompt", "chosen", "rejected", "prompt_id", "line", "source", "margin", *sum(RATING_KEYS, LABEL_KEYS)}


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
