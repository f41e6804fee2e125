"""One row of a benchmark's file: what it must hold, and where it stands when it does not."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from icrm_lib.rows import BadRow, file_rows
from icrm_lib.runtime import nearest
from icrm_lib.tokenization import Conversation

DAMAGED = "the file is damaged or another data set; take the official one"
_TYPES = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "nothing"}


@dataclass(frozen=True)
class Row:
    """A row of a data file; what is wrong with it is raised as ValueError with its place."""

    values: dict[str, Any]
    place: str  # file:row
    file: str  # name of the file without shard number and suffix

    def fail(self, reason: str, remedy: str) -> NoReturn:
        raise ValueError(f"{self.place}: {reason}; {remedy}")

    def get(self, key: str) -> Any:
        if key not in self.values:
            self.fail(f"no {key!r}", f"rename or add it (columns here: {', '.join(self.values) or 'none'})")
        return self.values[key]

    def name(self, key: str, parts: Collection[str]) -> str:
        """Return the part of the benchmark that the row belongs to."""
        name = self.text(key)
        if name not in parts:
            self.fail(f"unknown {key} {name!r}", nearest(name, list(parts)))
        return name

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            self.fail(f"{key!r} is {type_of(value)}, not a text", DAMAGED)
        return value

    def texts(self, key: str, count: int | None = None) -> list[str]:
        values = self.get(key)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            found = type_of(values) if not isinstance(values, list) else "a list with something else in it"
            self.fail(f"{key!r} is {found}, not a list of texts", DAMAGED)
        if count is not None and len(values) != count:
            self.fail(f"{key!r} holds {len(values)} responses, not {count}", DAMAGED)
        return values

    def prompt(self) -> Conversation:
        """Return the prompt as a conversation that ends with the user's turn."""
        value = self.get("prompt")
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if not isinstance(value, list):
            self.fail(f"'prompt' is {type_of(value)}", "give a text or a list of messages")
        for message in value:
            parts = [message.get(part) for part in ("role", "content")] if isinstance(message, dict) else [None]
            if not all(isinstance(part, str) for part in parts) or parts[0] not in ("system", "user", "assistant"):
                self.fail(
                    f"'prompt' holds the message {str(message)[:60]!r}",
                    'give {"role": system, user or assistant, "content": text}',
                )
        if not value or value[-1]["role"] != "user":
            last = f"ends with the {value[-1]['role']}'s turn" if value else "is empty"
            self.fail(f"'prompt' {last}", "end with the user's turn; the responses follow it")
        return [{"role": message["role"], "content": message["content"]} for message in value]

    def conversations(self, responses: Sequence[str]) -> list[Conversation]:
        prompt = self.prompt()
        return [[*prompt, {"role": "assistant", "content": response}] for response in responses]

    def pair(self) -> dict[str, Conversation]:
        sides = ("chosen", "rejected")
        return dict(zip(sides, self.conversations([self.text(side) for side in sides]), strict=True))


def type_of(value: Any) -> str:
    return _TYPES.get(type(value), "a number")


def dict_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield the rows of a file with their numbers (lines of a file with one object a line), both from 1."""
    for line, row in file_rows(path):
        if isinstance(row, BadRow):
            raise ValueError(f"{path.name}:{line}: {row}") from row
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}:{line}: the row is {type_of(row)}; write each row as one JSON object")
        yield line, row
