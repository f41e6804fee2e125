"""The heatmap of a page: responses one above the other on one colour scale, lines wrapped."""

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import Rectangle

from icrm_lib.figures import DIVERGING, SEQUENTIAL
from icrm_lib.heatmaps.responses import Row, Token, checked, ink, reward_norm, shown, visible

LINE = 92  # characters of a line
MARGIN = 10.0  # characters of the names of rows in front of it


def token_heatmap(
    token_rewards: Sequence[Token] | Mapping[str, Sequence[Token]],
    *,
    rows: Sequence[Row] = (),
    center: float | None = None,
    title: str = "",
) -> Figure:
    """Draw responses one above the other, each token on its colour with its value, and one colour bar for all.

    Args:
        token_rewards: `RewardModel.token_rewards` of one response, by tokens or words; or {name: that} for several,
            e.g. {"chosen": ..., "rejected": ...}.
        rows: further rows in [0, 1] under each response, on a scale of their own.
        center: see `reward_norm`.
        title: above the figure.

    Raises:
        ValueError: a response without tokens, a reward that is not finite, or a row of another length.
    """
    responses, norm = checked(token_rewards, rows), reward_norm(token_rewards, center)
    lines = {name: _wrapped([shown(token.text).strip() for token in tokens]) for name, tokens in responses.items()}
    under = {name: [row for row in rows if name in row.values] for name in responses}
    # In units of a text line: a token's box with its number, a strip for each further row, a gap; a name per response.
    heights = [1.1 + len(lines[name]) * (1.9 + 0.95 * len(under[name]) + 0.5) for name in responses]
    figure, axes = _page(sum(heights) + 0.4, title, norm, bool(rows))
    y = 0.2
    for (name, tokens), height in zip(responses.items(), heights, strict=True):
        axes.text(0, y + 0.55, _label(name), weight="bold", va="center", fontsize=9, parse_math=False)
        _draw(axes, y + 1.1, tokens, lines[name], [(row.name, row.values[name]) for row in under[name]], norm)
        y += height
    return figure


def _wrapped(texts: Sequence[str]) -> list[list[tuple[int, str, float, float]]]:
    """Return lines of (index of the token, its text, left edge, width)."""
    lines, x = [[]], MARGIN
    for index, text in enumerate(texts):
        characters = sum(2.0 if unicodedata.east_asian_width(c) in "WF" else 1.0 for c in text)
        width = min(max(3.2, characters * 1.08 + 1.0), LINE)
        if lines[-1] and x + width > MARGIN + LINE:
            lines.append([])
            x = MARGIN
        lines[-1].append((index, text, x, width))
        x += width
    return lines


def _page(total: float, title: str, norm: TwoSlopeNorm, strips: bool) -> tuple[Figure, Axes]:
    """Return a page with its title and colour bars, and axes for so many text lines."""
    below, above = (1.6 if strips else 0.9), (0.3 if title else 0.0)
    inches = 0.185 * total + below + above
    # An engine that does nothing rather than none: matplotlib puts the style's own in the place of none when it saves.
    figure = plt.figure(figsize=(9.0, inches))
    figure.set_layout_engine(PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True))
    bottom, top = below / inches, 1 - (above or 0.02) / inches
    axes = figure.add_axes((0.01, bottom, 0.98, top - bottom))
    axes.set(xlim=(0, MARGIN + LINE), ylim=(total, 0))
    axes.axis("off")
    scales = [(norm, DIVERGING, "reward of the prefix"), (Normalize(0, 1), SEQUENTIAL, "further rows")]
    for number, (scale, colors, what) in enumerate(scales[: 1 + strips]):
        place = figure.add_axes((0.12, bottom - (0.28 + 0.62 * number) / inches, 0.5, 0.12 / inches))
        bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colors), cax=place, orientation="horizontal")
        bar.set_label(what, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_linewidth(0.5)
    if title:
        figure.suptitle(_label(title), x=0.01, ha="left", fontsize=10, y=1 - 0.08 / inches, va="top", parse_math=False)
    return figure, axes


def _draw(axes: Axes, y: float, tokens: Sequence[Token], lines, rows: list[tuple[str, Sequence[float]]], norm) -> None:
    colors, strip = mpl.colormaps[DIVERGING], mpl.colormaps[SEQUENTIAL]
    for line in lines:
        _name(axes, y + 0.6, "reward")
        for index, text, x, width in line:
            color = colors(norm(tokens[index].reward))
            _box(axes, x, y, width, 1.85, color)
            _write(axes, x + width / 2, y + 0.65, _drawable(text), color, 8)
            _write(axes, x + width / 2, y + 1.45, f"{tokens[index].reward:.1f}", color, 5.5)
        y += 1.9
        for name, values in rows:
            _name(axes, y + 0.45, _label(name))
            for index, _, x, width in line:
                value = float(values[index])
                color = (1, 1, 1, 1) if np.isnan(value) else strip(min(max(value, 0.0), 1.0))
                _box(axes, x, y, width, 0.9, color)
                if not np.isnan(value):
                    _write(axes, x + width / 2, y + 0.45, f"{value:.2f}".removeprefix("0"), color, 5)
            y += 0.95
        y += 0.5


def _name(axes: Axes, y: float, text: str) -> None:
    axes.text(MARGIN - 0.4, y, text, ha="right", va="center", fontsize=6.5, parse_math=False)


def _box(axes: Axes, x: float, y: float, width: float, height: float, color) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="white", lw=0.6))


def _write(axes: Axes, x: float, y: float, text: str, background, size: float) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=ink(background), parse_math=False)


def _label(text: str) -> str:
    return "\n".join(_drawable("".join(map(visible, line))) for line in text.split("\n"))


def _drawable(text: str) -> str:
    """Replace what the font has no picture of; matplotlib would draw a box and complain."""
    return "".join(c if _font().get_char_index(ord(c)) else "\u25a1" for c in text)


@cache
def _font() -> FT2Font:
    return FT2Font(font_manager.findfont("DejaVu Sans"))
