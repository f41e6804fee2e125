"""The columns of a row: which were read, and that no text of the others is lost in silence."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from icrm_lib.rows import BadRow, shown

# What the last word of a column's name says is about the row, not part of the conversation. Columns of numbers and
# truth values, and texts that the pair holds already, are never missed either. All else that is text is refused.
_ABOUT = re.compile(
    r"ids?|uid|uuid|guid|qid|hash|key|index|idx|line|row|models?|policy|engine|sources?|datasets?|origin|corpus|split"
    r"|subset|batch|categor(y|ies)|class|domains?|topics?|tasks?|types?|tags?|labels?|languages?|lang|licen[sc]e|urls?|uri"
    r"|links?|date|time|timestamp|tstamp|created|updated|version|revision|author|annotators?|worker|evaluator|judge|rater"
    r"|site|subreddit|ratings?|scores?|ranks?|margin|preferences?|winner|choice|status|quality|difficulty|level|confidence"
    r"|reason|rationale|explanation|justification|critiques?|feedback|comments?|annotations?|review|notes?|statement"
    r"|elaboration|meta|metadata|statistics|flags"
)
_ROLES = {"system", "user", "assistant", "human", "gpt"}


class Row:
    """The columns of a row, which remembers those that were read.

    Args:
        values: by name.
        ignore: names of columns, and of keys of messages, whose text may be left out.
    """

    def __init__(self, values: dict[str, Any], ignore: Collection[str] = ()):
        self.values, self.ignore = values, set(ignore)
        self._read: set[str] = set()

    def has(self, *keys: str) -> bool:
        """Whether all these columns hold something."""
        return all(self.values.get(key) is not None for key in keys)

    def get(self, key: str) -> Any:
        """Return what stands under a key, None where nothing does; it counts as read."""
        self._read.add(key)
        return self.values.get(key)

    def first(self, keys: Iterable[str]) -> str | None:
        """Return the first of these keys that holds something."""
        return next((key for key in keys if self.has(key)), None)

    def check_rest(self, said: Collection[str]) -> None:
        """Raise `BadRow` where a column that was not read holds text which `said` does not."""
        for key in self.values.keys() - self._read - self.ignore:
            if is_about(key):
                continue
            if any(
                text.strip() and text.strip() not in said and text not in _ROLES for text in texts(self.values[key])
            ):
                raise BadRow(
                    f"text in {shown(key)!r} would be lost",
                    "it is no part of prompt or replies; write it into the prompt if the replies were given with it, "
                    f"or leave it out by ignore=({shown(key)!r},)",
                )

    def left_out(self) -> list[str]:
        """Return the ignored columns that hold text here."""
        return [key for key in self.ignore if any(text.strip() for text in texts(self.values.get(key)))]


def is_about(key: str) -> bool:
    """Say whether a key's name says that it is about a row or message, and no part of it."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower()
    words = [word for word in re.split(r"[^a-z]+", spaced) if len(word) > 1]
    return bool(words) and (bool(_ABOUT.fullmatch(words[-1])) or (words[-1] == "name" and len(words) > 1))


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)
