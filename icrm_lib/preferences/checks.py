"""The pair that every form of a row becomes, and what it must fulfil. A new kind of fault is a new function here."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import regex

from icrm_lib.preferences.prompts import normal_text
from icrm_lib.rows import BadRow
from icrm_lib.tokenization import Message

_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character in UTF-16, which UTF-8 has no bytes for
# Something to see: not white space, a control character, or one that Unicode lets a font leave out (zero width).
_VISIBLE = regex.compile(r"[^\s\p{Cc}\p{DI}\u2800]")
_INVISIBLE = re.compile("[\u00ad\u200b\u2060\ufeff]")  # without the joiners: they change emoji and Persian words
# Compatibility forms that say something else than their plain letters: x² and x2, ½ and 12, ℝ and R.
_MEANT = ("<super>", "<sub>", "<fraction>", "<font>", "<circle>", "<square>")


@dataclass(frozen=True)
class Pair:
    prompt: list[Message]
    chosen: str
    rejected: str
    margin: float | None
    source: str | None
    chosen_spans: list[dict[str, Any]] | None = None
    rejected_spans: list[dict[str, Any]] | None = None

    def texts(self) -> Iterator[tuple[str, str]]:
        """Yield (key, text) of everything that will be tokenised."""
        yield from (("prompt", m["content"]) for m in self.prompt)
        yield "chosen", self.chosen
        yield "rejected", self.rejected


def check_characters(key: str, text: str) -> None:
    """Raise `BadRow` for half a character or a NUL in the text under a key."""
    if half := _SURROGATE.search(text):
        code = f"U+{ord(half[0]):04X}"
        raise BadRow(f"half a character in {key!r}", f"{code} at {half.start()} is an unpaired surrogate; remove it")
    if (at := text.find("\0")) >= 0:
        raise BadRow(f"NUL character in {key!r}", f"at {at}; many tools end a text there, remove it")


def check_visible(key: str, text: str) -> None:
    """Raise `BadRow` for a text under a key that shows nothing."""
    if not _VISIBLE.search(text):
        raise BadRow(f"empty text in {key!r}", f"found {text[:20]!r}; fill it or drop the row")


def _check_characters(pair: Pair) -> None:
    for key, text in (*pair.texts(), ("source", pair.source or "")):
        check_characters(key, text)


def _check_text(pair: Pair) -> None:
    for key, text in pair.texts():
        # An empty system turn is common and means something: no default system prompt.
        if not (key == "prompt" and pair.prompt[0] == {"role": "system", "content": text}):
            check_visible(key, text)


def _check_different(pair: Pair) -> None:
    if _same(pair.chosen, pair.rejected):
        raise BadRow("chosen equals rejected", f"both are {pair.chosen[:40]!r}; nothing is preferred, drop the row")


def _same(one: str, other: str) -> bool:
    """Say whether nobody could tell two replies apart. White space inside a line counts, as it does in code."""
    one, other = (normal_text(_INVISIBLE.sub("", text).replace("\r\n", "\n")) for text in (one, other))
    if one == other:
        return True
    if one.isascii() and other.isascii():
        return False
    if unicodedata.normalize("NFKC", one) != unicodedata.normalize("NFKC", other):
        return False
    return not any(unicodedata.decomposition(c).startswith(_MEANT) for c in one + other)


# Each takes a well-formed pair and raises BadRow.
CHECKS = (_check_characters, _check_text, _check_different)
