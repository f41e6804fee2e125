"""The columns of a row: which were read, and that no text of the others is lost in silence."""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from icrm_lib.rows import BadRow, shown

# What the last word of a column's name says is about the row, not part of the conversation: a label (few words, no
# sentence), or a remark of whoever compared the replies, in any words. Columns of numbers and truth values, and texts
# that the pair holds already, are never missed either. All else that is text is refused.
_LABEL = re.compile(
    r"ids?|uid|uuid|guid|qid|hash|key|index|idx|line|row|models?|policy|engine|sources?|datasets?|origin|corpus|split"
    r"|subset|batch|categor(y|ies)|class|domains?|topics?|tasks?|types?|tags?|labels?|languages?|lang|licen[sc]e|urls?|uri"
    r"|links?|date|time|timestamp|tstamp|created|updated|version|revision|author|annotators?|worker|evaluator|judge|rater"
    r"|site|subreddit|ratings?|scores?|ranks?|margin|preferences?|winner|choice|status|quality|difficulty|level|confidence"
    r"|principle|meta|metadata|statistics|flags"
)
_REMARK = re.compile(
    r"reason|rationale|explanation|justification|critiques?|feedback|comments?|annotations?|review|notes?|statement"
    r"|elaboration"
)
_NO_LABEL = re.compile(r"[?!\n]|:\s|:$")
_PROMPTS = {"system", "system_prompt", "context", "history", "instruction", "input", "prompt", "passage", "persona"}
_ROLES = {"system", "user", "assistant", "human", "gpt"}


class Row:
    """The columns of a row, which remembers those that were read.

    Args:
        values: by name.
        ignore: names of columns, and of keys of messages, whose text may be left out.
    """

    def __init__(self, values: dict[str, Any], ignore: Collection[str] = ()):
        self.values = {key: value for key, value in values.items() if key not in ignore}
        self.ignore = set(ignore)
        self._whole, self._read = values, set()

    def has(self, *keys: str) -> bool:
        """Whether all these columns hold something."""
        return not any(self.values.get(key) is None for key in keys)

    def get(self, key: str) -> Any:
        """Return what stands under a key, None where nothing does; it counts as read."""
        self._read.add(key)
        return self.values.get(key)

    def first(self, keys: Iterable[str]) -> str | None:
        """Return the first of these keys that holds something."""
        return next((key for key in keys if self.has(key)), None)

    def check_rest(self, said: Collection[str]) -> list[str]:
        """Raise `BadRow` where columns that were not read hold text which `said` does not; return those of remarks."""
        unread = {key: value for key, value in self.values.items() if key not in self._read}
        return check_unread(unread, said)

    def left_out(self) -> list[str]:
        """Return the ignored columns that hold text here."""
        return [key for key in self.ignore if any(text.strip() for text in texts(self._whole.get(key)))]


def check_unread(values: dict[str, Any], said: Collection[str] = (), where: str = "") -> list[str]:
    """Raise `BadRow` where one of these values holds text that nobody would read; names all of them.

    Args:
        values: by column, or by key of an object inside a row.
        said: texts that are part of the pair, without white space around them.
        where: what the values are the keys of, for the message.

    Returns:
        the keys that hold remarks about the row, which are left out.
    """
    lost, remarks = [], []
    for key, value in values.items():
        found = [text for text in texts(value) if text.strip() and text.strip() not in said and text not in _ROLES]
        if not found:
            continue
        word = _last_word(key)
        if _REMARK.fullmatch(word):
            remarks.append(key)
        elif not _LABEL.fullmatch(word) or not all(map(_is_label, found)) or _holds_prompt(value):
            lost.append(key)
    if lost:
        names = ", ".join(repr(shown(key)) for key in sorted(lost)[:6])
        raise BadRow(
            f"text in {shown(sorted(lost)[0])!r}{where} would be lost",
            "it is no part of prompt or replies; write it into the prompt if the replies were given with it, or leave "
            f"it out by ignore=({names},)",
        )
    return remarks


def _last_word(key: str) -> str:
    """Return the word that says what a column is, without the letter or number that tells two apart."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", key).lower()
    words = [word for word in re.split(r"[^a-z]+", spaced) if len(word) > 1]
    return "" if not words else words[-2] if words[-1] == "name" and len(words) > 1 else words[-1]


def _is_label(text: str) -> bool:
    """Say whether a text is a label, an identifier or an address rather than a sentence."""
    words = text.split()
    return len(words) == 1 or (len(words) <= 6 and not _NO_LABEL.search(text.strip()))


def _holds_prompt(value: Any) -> bool:
    """Whether an object inside a column has a key that belongs to a prompt."""
    if isinstance(value, dict):
        return any(key in _PROMPTS or _holds_prompt(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_holds_prompt, value))


def texts(value: Any) -> Iterator[str]:
    """Yield every text in a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)
