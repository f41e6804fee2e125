"""What a heatmap takes: responses as tokens with rewards, and further rows under them.

Nothing here depends on a model: a token is anything with a `text` and a `reward`, as `reward_model.TokenReward` has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

LARGEST = 1e38  # of what can be drawn, about what single precision holds; the span of larger ones overflows


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
    responses = dict(token_rewards) if isinstance(token_rewards, Mapping) else {"": list(token_rewards)}
    if not responses:
        raise ValueError("there is no response to draw; give at least one")
    for row in rows:
        if strange := sorted(set(row.values) - set(responses)):
            raise ValueError(
                f"row {row.name!r} has values for {strange[0]!r}, which is none of {sorted(responses)}; "
                'a single list of tokens is the response ""'
            )
    for name, tokens in responses.items():
        if not tokens:
            raise ValueError(f"response {name!r} has no tokens; give at least one")
        for token in tokens:
            if not is_drawable(token.reward):
                raise ValueError(
                    f"response {name!r} has the reward {str(token.reward)[:40]}, which is not finite or beyond "
                    f"{LARGEST:g}; leave the token out or mend the model"
                )
        for row in rows:
            if name in row.values and len(row.values[name]) != len(tokens):
                raise ValueError(
                    f"row {row.name!r} has {len(row.values[name])} values for {len(tokens)} tokens of response "
                    f"{name!r}; give one a token, the closing one included"
                )
            for value in row.values.get(name, ()):
                if _number(value) is None:
                    raise ValueError(f"row {row.name!r} has the value {value!r}; give a number, nan where none is")
    return responses


def is_drawable(value) -> bool:
    return _number(value) is not None and abs(_number(value)) < LARGEST


def _number(value) -> float | None:
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
