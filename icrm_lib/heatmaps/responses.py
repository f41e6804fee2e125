"""What a heatmap takes, responses as tokens with rewards and further rows under them, and its scale and characters.

Nothing here depends on a model: a token is anything with a `text` and a `reward`, as `reward_model.TokenReward` has.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import regex
from matplotlib.colors import TwoSlopeNorm

LARGEST = 1e38  # of what can be drawn, about what single precision holds; the span of larger ones overflows
CLOSING = "⏎"  # shown for the closing token, whose text is empty


class Token(Protocol):
    """One response token: its part of the response, and the reward of the prefix that ends with it."""

    text: str
    reward: float


@dataclass(frozen=True)
class Row:
    """A further row under the rewards, in [0, 1], e.g. the exact prefix value or the generator's probability.

    Attributes:
        name: shown in front of the row.
        values: response -> one value a token; nan is left white. A single response without a name is called "".
    """

    name: str
    values: Mapping[str, Sequence[float]]


def checked(token_rewards, rows: Sequence[Row]) -> dict[str, list[Token]]:
    """Return the responses by name; what cannot be drawn raises ValueError."""
    responses = dict(token_rewards) if isinstance(token_rewards, Mapping) else {"": list(token_rewards)}
    if not responses:
        raise ValueError("there is no response to draw; give at least one")
    for name, tokens in responses.items():
        if not tokens:
            raise ValueError(f"response {name!r} has no tokens; give at least one")
        for token in tokens:
            if not _is_drawable(token.reward):
                raise ValueError(
                    f"response {name!r} has the reward {str(token.reward)[:40]}, which is not finite or beyond "
                    f"{LARGEST:g}; leave the token out or mend the model"
                )
    for row in rows:
        for name, values in row.values.items():
            if name not in responses:
                raise ValueError(
                    f"row {row.name!r} has values for {name!r}, which is none of {sorted(responses)}; "
                    'a single list of tokens is the response ""'
                )
            if len(values) != len(responses[name]):
                raise ValueError(
                    f"row {row.name!r} has {len(values)} values for {len(responses[name])} tokens of response "
                    f"{name!r}; give one a token, the closing one included"
                )
            for value in values:
                if _number(value) is None:
                    raise ValueError(f"row {row.name!r} has the value {value!r}; give a number, nan where none is")
    return responses


def reward_norm(token_rewards, center: float | None = None) -> TwoSlopeNorm:
    """Return the colour scale of some responses: symmetrical about `center`, reaching the reward farthest from it.

    Args:
        token_rewards: tokens of one response, or {name: tokens}.
        center: the reward that is white; when None the middle between the lowest and the highest (the level of a
            Bradley-Terry reward has no meaning, only differences do).
    """
    rewards = np.array([float(token.reward) for tokens in checked(token_rewards, ()).values() for token in tokens])
    if center is not None and not _is_drawable(center):
        raise ValueError(f"center={center} is not finite or beyond {LARGEST:g}; give a reward, or None for the middle")
    center = float((rewards.min() + rewards.max()) / 2) if center is None else center
    reach = max(float(np.abs(rewards - center).max()), 1e-6 * max(1.0, abs(center)))
    return TwoSlopeNorm(center, center - reach, center + reach)


def ink(background) -> str:
    """Black or white, whichever stands out more on a colour."""
    r, g, b = background[:3]
    return "black" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.45 else "white"


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


def _is_drawable(value) -> bool:
    number = _number(value)
    return number is not None and abs(number) < LARGEST


def _number(value) -> float | None:
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
