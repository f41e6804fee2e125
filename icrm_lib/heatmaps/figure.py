"""The heatmap of a page: responses one above the other on one colour scale, lines wrapped."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from icrm_lib.figures import DIVERGING, SEQUENTIAL
from icrm_lib.heatmaps.responses import Row, Token, checked
from icrm_lib.heatmaps.scale import ink, reward_norm
from icrm_lib.heatmaps.text import characters, drawable, label, shown

LINE = 92  # characters of a line in the figure


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
    responses, norm = checked(token_rewards, rows), reward_norm(token_rewards, center)
    lines = {name: _wrapped([shown(t.text) for t in tokens], line) for name, tokens in responses.items()}
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
        axes.text(0, y + 0.55, label(name), weight="bold", va="center", fontsize=9, parse_math=False)
        y += 1.1
        for members in lines[name]:
            x = 10.0
            axes.text(9.6, y + 0.6, "reward", ha="right", va="center", fontsize=6.5)
            for index, width in members:
                color = colors(norm(tokens[index].reward))
                text = shown(tokens[index].text)
                _box(axes, x, y, width, 1.85 if numbers else 1.3, color)
                _write(axes, x + width / 2, y + 0.65, drawable(text.strip()), color, 8)
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
        figure.suptitle(label(title), x=0.01, ha="left", fontsize=10, y=1 - 0.08 / inches, va="top", parse_math=False)
    return figure


def _wrapped(texts: Sequence[str], line: int) -> list[list[tuple[int, float]]]:
    """Lines of (token index, width in characters)."""
    lines, used = [[]], 0.0
    for index, text in enumerate(texts):
        width = max(3.2, characters(text.strip()) * 1.08 + 1.0)
        if lines[-1] and used + width > line:
            lines.append([])
            used = 0.0
        lines[-1].append((index, min(width, line)))
        used += width
    return lines


def _box(axes, x: float, y: float, width: float, height: float, color) -> None:
    axes.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="white", lw=0.6))


def _write(axes, x: float, y: float, text: str, background, size: float) -> None:
    axes.text(x, y, text, ha="center", va="center", fontsize=size, color=ink(background), parse_math=False)


def _strip(axes, y: float, row: Row, values: Sequence[float], members, colors, numbers: bool) -> None:
    x = 10.0
    axes.text(9.6, y + 0.45, label(row.name), ha="right", va="center", fontsize=6.5, parse_math=False)
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
    for number, (scale, colors, what) in enumerate(places):
        axes = figure.add_axes((0.12, bottom - (0.28 + 0.62 * number) / inches, 0.5, 0.12 / inches))
        bar = figure.colorbar(mpl.cm.ScalarMappable(scale, colors), cax=axes, orientation="horizontal")
        bar.set_label(what, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.outline.set_linewidth(0.5)
