"""Text of any kind as something to look at: no character is invisible, and none has an effect beyond its token."""

import unicodedata
from functools import cache

import regex
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

CLOSING = "⏎"  # shown for the closing token, whose text is empty


def shown(text: str) -> str:
    """A token as something to look at: marks of direction, zero-width and control characters by their code."""
    if not text:
        return CLOSING
    return "".join(visible(c) for c in text)


def visible(c: str) -> str:
    if c == "\n":
        return "↵"
    # Control characters, separators, surrogates, unassigned ones, and all that Unicode lets a font leave out. What
    # joins emoji or picks their look stays: by itself it does nothing.
    if unicodedata.category(c) in ("Cf", "Cc", "Zl", "Zp", "Cs", "Co", "Cn") or regex.match(r"\p{DI}", c):
        if c in "\u200d\ufe0e\ufe0f":
            return c
        return f"‹{ord(c):04X}›"
    return c


def label(text: str) -> str:
    return "\n".join(drawable("".join(map(visible, line))) for line in text.split("\n"))


def drawable(text: str) -> str:
    """Replace what the font has no picture of; matplotlib would draw a box and complain."""
    return "".join(c if _font().get_char_index(ord(c)) else "\u25a1" for c in text)


@cache
def _font() -> FT2Font:
    return FT2Font(font_manager.findfont("DejaVu Sans"))


def characters(text: str) -> float:
    return sum(2.0 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)
