"""One look for every plot of the kit: it must read in grey print and to colour-blind eyes.

Colours come from palettes made for that (Okabe and Ito; Wong, Nature Methods 2011), and never stand alone: a
method also has a line style and a marker, and lines carry their name where they end.
"""

from collections.abc import Sequence
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes

COLORS = MappingProxyType(
    {
        "chosen": "#0072B2",
        "rejected": "#D55E00",
        "neutral": "#767676",
        "bt": "#000000",
        "grm": "#E69F00",
        "icrm": "#9A3FB5",
        "icrm_uniform": "#009E73",
        "implicit": "#7CC4EA",
        "gold": "#2F2F6F",
    }
)
LINESTYLES = MappingProxyType(
    {
        "bt": (0, (1, 1.2)),
        "grm": (0, (4, 1, 1, 1)),
        "icrm": "-",
        "icrm_uniform": (0, (5, 1.5)),
        "implicit": (0, (3, 1, 1, 1, 1, 1)),
        "gold": (0, (8, 2)),
    }
)
MARKERS = MappingProxyType({"bt": "s", "grm": "^", "icrm": "o", "icrm_uniform": "D", "implicit": "v", "gold": "*"})
SEQUENTIAL = "cividis"  # for probabilities: lightness rises evenly, also for colour-blind readers
DIVERGING = "RdBu"  # for signed values: red below, blue above, white in the middle

_RC = {
    "figure.figsize": (6.4, 3.6),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 100,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a picture looks alike everywhere
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}


def use_style() -> None:
    """Set the style of all plots that follow."""
    sns.set_theme(context="notebook", style="ticks", rc=_RC)
    mpl.rcParams["axes.prop_cycle"] = mpl.cycler(
        color=[COLORS[name] for name in ("chosen", "rejected", "icrm_uniform", "icrm", "grm", "neutral")]
    )


def forest(ax: Axes, names: Sequence[str], estimates: Sequence[tuple[float, float, float]], **style) -> None:
    """Draw one point with its interval a row, the first on top, and a line at zero.

    Args:
        ax: axes to draw in.
        names: one a row.
        estimates: (value, low, high), one a row.
        style: of `Axes.errorbar`, e.g. color and marker.
    """
    value, low, high = np.array(estimates, dtype=float).T
    rows = np.arange(len(names))[::-1]
    ax.axvline(0, color=COLORS["neutral"], lw=1)
    options = {"fmt": "o", "capsize": 2.5, "color": COLORS["icrm"], "lw": 1.4} | style
    ax.errorbar(value, rows, xerr=(value - low, high - value), **options)
    ax.set_yticks(rows, names)
    ax.set_ylim(-0.6, len(names) - 0.4)


def label_lines(ax: Axes, *, gap: float = 0.055, size: float = 9) -> None:
    """Write each labelled line's name next to its last finite point, in its colour, instead of a legend.

    Args:
        ax: axes whose limits are final; lines without a label of their own are left out.
        gap: least vertical distance of two names, as a share of the axes' height.
        size: font size in points.
    """
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    to_axes = ax.transData + ax.transAxes.inverted()
    points = [np.ma.compress_rows(np.ma.masked_invalid(line.get_xydata())) for line in lines]
    ends = [to_axes.transform(path[-1]) for path in points]
    lowest = float("-inf")
    for line, (x, y) in sorted(zip(lines, ends, strict=True), key=lambda pair: pair[1][1]):
        lowest = max(y, lowest + gap)
        ax.annotate(
            line.get_label(),
            (x, lowest),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            fontsize=size,
            annotation_clip=False,
        )
