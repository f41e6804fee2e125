"""Token-reward heatmaps: responses one above the other on one colour scale, as a figure and as HTML for a notebook.

Nothing here depends on a model: a token is anything with a `text` and a `reward`, as `reward_model.TokenReward` has.
"""

import html
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import matplotlib as mpl
import numpy as np
import regex
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.colors import Normalize, TwoSlopeNorm, rgb2hex
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

from icrm_lib.figures import DIVERGING, SEQUENTIAL

CLOSING = "⏎"  # shown for the closing token, whose text is empty
LINE = 92  # characters of a line in the figure
LARGEST = 1e38  # of what can be drawn, about what single precision holds; the span of larger ones overflows
# A token in HTML: apart from its neighbours, and with a text direction that ends where it ends.
CHIP = "padding:1px 3px;margin:1px;display:inline-block;white-space:pre-wrap;unicode-bidi:isolate;direction:ltr"


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


def _checked(token_rewards, rows: Sequence[Row]) -> dict[str, list[Token]]:
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
            if not _is_drawable(token.reward):
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


def _number(value) -> float | None:
    try:
        return None if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_drawable(value) -> bool:
    return _number(value) is not None and abs(_number(value)) < LARGEST


def reward_norm(token_rewards, center: float | None = None) -> TwoSlopeNorm:
    """Return the colour scale of some responses: symmetrical about `center`, reaching the reward farthest from it.

    Args:
        token_rewards: tokens of one response, or {name: tokens}.
        center: the reward that is white; when None the middle between the lowest and the highest (the level of a
            Bradley-Terry reward has no meaning, only differences do).
    """
    rewards = np.array([float(token.reward) for tokens in _checked(token_rewards, ()).values() for token in tokens])
    if center is not None and not _is_drawable(center):
        raise ValueError(f"center={center} is not finite or beyond {LARGEST:g}; give a reward, or None for the middle")
    center = float((rewards.min() + rewards.max()) / 2) if center is None else center
    reach = max(float(np.abs(rewards - center).max()), 1e-6 * max(1.0, abs(center)))
    return TwoSlopeNorm(center, center - reach, center + reach)


# Figure --------------------------------------------------------------------------------------------------------------


def token_heatmap(
    token_rewards: Sequence[Token] | Mapping[str, Sequence[Token]],
    *,
    rows: Sequence[Row] = (),
    center: float | None = None,
    title: str = "",
    line: int = LINE,
    numbers: bool = True,
) -> Figure:
    """Draw responses one above the other, each token on its colour, lines wrapped, with one colour bar for all.

    Args:
        token_rewards: `RewardModel.token_rewards` of one response, by tokens or words; or {name: that} for several,
            e.g. {"chosen": ..., "rejected": ...}.
        rows: further rows in [0, 1] under each response, on a scale of their own.
        center: see `reward_norm`.
        title: above the figure.
        line: characters of a line.
        numbers: print each value under its token, so that the figure can be read without colours.

    Raises:
        ValueError: a response without tokens, a reward that is not finite, or a row of another length.
    """
    responses, norm = _checked(token_rewards, rows), reward_norm(token_rewards, center)
    lines = {name: _wrapped([_shown(t.text) for t in tokens], line) for name, tokens in responses.items()}
    count = {name: 1 + sum(name in row.values for row in rows) for name in responses}
    # In units of a text line: a token's box with its number, a strip for each further row, a gap; a name per response.
    heights = {name: len(lines[name]) * (1.9 + 0.95 * (count[name] - 1) + 0.5) + 1.1 for name in responses}
    total = sum(heights.values()) + 0.4
    bars = 0.9 if not rows else 1.6
    figure = plt.figure(figsize=(9.0, 0.185 * total + bars + (0.3 if title else 0)), layout="none")
    inches = figure.get_figheight()
    top = 1 - (0.3 if title else 0.02) / inches
    bottom = bars / inches
    axes = figure.add_axes((0.01, bottom, 0.98, top - bottom))
    axes.set(xlim=(0, line + 10), ylim=(total, 0))
    axes.axis("off")
    colors, strip = mpl.colormaps[DIVERGING], mpl.colormaps[SEQUENTIAL]
    y = 0.2
    for name, tokens in responses.items():
        axes.text(0, y + 0.55, _label(name), weight="bold", va="center", fontsize=9, parse_math=False)
        y += 1.1
        for members in lines[name]:
            x = 10.0
            axes.text(9.6, y + 0.6, "reward", ha="right", va="center", fontsize=6.5)
            for index, width in members:
                color = colors(norm(tokens[index].reward))
                text = _shown(tokens[index].text)
                _box(axes, x, y, width, 1.85 if numbers else 1.3, color)
                _write(axes, x + width / 2, y + 0.65, _drawable(text.strip()), color, 8)
                if numbers:
                    _write(axes, x + width / 2, y + 1.45, f"{tokens[index].reward:.1f}", color, 5.5)
                x += width
            y += 1.9
            for row in rows:
                if name in row.values:
                    _strip(axes, y, row, row.values[name], members, strip, numbers)
                    y += 0.95
            y += 0.5
    _bars(figure, norm, bool(rows), bottom, inches)
    if title:
        figure.suptitle(_label(title), x=0.01, ha="left", fontsize=10, y=1 - 0.08 / inches, va="top", parse_math=False)
    return figure


def _wrapped(texts: Sequence[str], line: int) -> list[list[tuple[int, float]]]:
    """Lines of (token index, width in characters)."""
    lines, used = [[]], 0.0
    for index, text in enumerate(texts):
        width = max(3.2, _width(text.strip()) * 1.08 + 1.0)
        if lines[-1] and used + width > line:
            lines.append([])
            used = 0.0
        lines[-1].append((index, min(width, line)))
        used += width
    return lines


def _width(text: str) -> float:
    return sum(2.0 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)


def _box(axes, x: float, y: float, width: float, height: float, color) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="white", lw=0.6))


def _write(axes, x: float, y: float, text: str, background, size: float) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=_ink(background), parse_math=False)


def _strip(axes, y: float, row: Row, values: Sequence[float], members, colors, numbers: bool) -> None:
    x = 10.0
    axes.text(9.6, y + 0.45, _label(row.name), ha="right", va="center", fontsize=6.5, parse_math=False)
    for index, width in members:
        value = float(values[index])
        color = (1, 1, 1, 1) if np.isnan(value) else colors(min(max(value, 0.0), 1.0))
        _box(axes, x, y, width, 0.9, color)
        if numbers and not np.isnan(value):
            _write(axes, x + width / 2, y + 0.45, f"{value:.2f}".removeprefix("0"), color, 5)
        x += width


def _bars(figure: Figure, norm: TwoSlopeNorm, strips: bool, bottom: float, inches: float) -> None:
    places = [(norm, DIVERGING, "reward of the prefix")]
    places += [(Normalize(0, 1), SEQUENTIAL, "further rows")] if strips else []
    for number, (scale, colors, label) in enumerate(places):
        axes = figure.add_axes((0.12, bottom - (0.28 + 0.62 * number) / inches, 0.5, 0.12 / inches))
        bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colors), cax=axes, orientation="horizontal")
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_linewidth(0.5)


def _ink(background) -> str:
    """Black or white, whichever stands out more on a colour."""
    r, g, b = background[:3]
    return "black" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.45 else "white"


@cache
def _font() -> FT2Font:
    return FT2Font(font_manager.findfont("DejaVu Sans"))


def _drawable(text: str) -> str:
    """Replace what the font has no picture of; matplotlib would draw a box and complain."""
    return "".join(c if _font().get_char_index(ord(c)) else "\u25a1" for c in text)


def _label(text: str) -> str:
    return "\n".join(_drawable("".join(map(_visible, line))) for line in text.split("\n"))


# Text ----------------------------------------------------------------------------------------------------------------


def _shown(text: str) -> str:
    """A token as something to look at: marks of direction, zero-width and control characters by their code."""
    if not text:
        return CLOSING
    return "".join(_visible(c) for c in text)


def _visible(c: str) -> str:
    if c == "\n":
        return "↵"
    # Control characters, separators, surrogates, unassigned ones, and all that Unicode lets a font leave out. What
    # joins emoji or picks their look stays: by itself it does nothing.
    if unicodedata.category(c) in ("Cf", "Cc", "Zl", "Zp", "Cs", "Co", "Cn") or regex.match(r"\p{DI}", c):
        if c in "\u200d\ufe0e\ufe0f":
            return c
        return f"‹{ord(c):04X}›"
    return c


# HTML ----------------------------------------------------------------------------------------------------------------


def token_heatmap_html(
    token_rewards: Sequence[Token] | Mapping[str, Sequence[Token]],
    *,
    rows: Sequence[Row] = (),
    center: float | None = None,
    title: str = "",
) -> str:
    """The same as HTML: hover a token for its values. Needs no script and no network; all text is escaped.

    (Of the kept libraries circuitsvis fetches its script from the network, so that a stored notebook shows nothing
    offline, and shap brings a compiler; this is one page of markup.)

    Args:
        token_rewards, rows, center, title: see `token_heatmap`.

    Returns:
        a `<div>`; show it with `IPython.display.HTML`. Markup in a response shows as text, marks of direction and
        zero-width characters by their code (but for the joiners inside emoji), and none has an effect beyond its own
        token.
    """
    responses, norm = _checked(token_rewards, rows), reward_norm(token_rewards, center)
    colors = mpl.colormaps[DIVERGING]
    parts = [f"<div><b>{html.escape(_shown(title))}</b></div>" if title else ""]
    for name, tokens in responses.items():
        spans = []
        for index, token in enumerate(tokens):
            values = [f"reward {token.reward:.3f}"]
            given = [row for row in rows if name in row.values]
            values += [f"{''.join(map(_visible, row.name))} {float(row.values[name][index]):.3f}" for row in given]
            color = colors(norm(token.reward))
            style = f"background:{rgb2hex(color)};color:{_ink(color)};{CHIP}"
            hover = html.escape("\n".join(values), quote=True)
            spans.append(f'<span style="{style}" title="{hover}">{html.escape(_shown(token.text))}</span>')
        label = f"<b>{html.escape(_shown(name))}</b><br>" if name else ""
        parts.append(f'<div style="margin:6px 0;line-height:1.9">{label}{"".join(spans)}</div>')
    stops = ", ".join(rgb2hex(colors(x)) for x in np.linspace(0, 1, 9))
    bar = f"display:inline-block;width:160px;height:10px;background:linear-gradient(to right, {stops})"
    parts.append(
        f'<div><small>{norm.vmin:.2f} <span style="{bar}"></span> {norm.vmax:.2f} reward of the prefix</small></div>'
    )
    return f'<div style="font-family:sans-serif;max-width:60em">{"".join(parts)}</div>'
