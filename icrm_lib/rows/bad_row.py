"""A fault of one row, and how a message shows what was found in it."""

from typing import Any

_JSON_NAMES = {bool: "boolean", int: "number", float: "number", dict: "object", list: "array", type(None): "null"}


class BadRow(ValueError):
    """A fault of one row: the reason in words that are the same for all rows with this fault, and the remedy."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


def shown(key: str) -> str:
    """Return a key as a message can show it: printable and short."""
    return repr(key)[1:-1][:40]


def type_name(value: Any) -> str:
    """Return what JSON calls the type of a value, or Python where JSON has no such type."""
    return _JSON_NAMES.get(type(value), type(value).__name__)
