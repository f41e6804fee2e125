"""The heatmap of a notebook: HTML without script and network."""

import html
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import rgb2hex

from icrm_lib.figures import DIVERGING
from icrm_lib.heatmaps.responses import Row, Token, checked, ink, reward_norm, shown, visible

# A token in HTML: apart from its neighbours, and with a text direction that ends where it ends.
CHIP = "padding:1px 3px;margin:1px;display:inline-block;white-space:pre-wrap;unicode-bidi:isolate;direction:ltr"


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
    responses, norm = checked(token_rewards, rows), reward_norm(token_rewards, center)
    colors = mpl.colormaps[DIVERGING]
    parts = [f"<div><b>{html.escape(shown(title))}</b></div>" if title else ""]
    for name, tokens in responses.items():
        spans = []
        for index, token in enumerate(tokens):
            values = [f"reward {token.reward:.3f}"]
            given = [row for row in rows if name in row.values]
            values += [f"{''.join(map(visible, row.name))} {float(row.values[name][index]):.3f}" for row in given]
            color = colors(norm(token.reward))
            style = f"background:{rgb2hex(color)};color:{ink(color)};{CHIP}"
            hover = html.escape("\n".join(values), quote=True)
            spans.append(f'<span style="{style}" title="{hover}">{html.escape(shown(token.text))}</span>')
        label = f"<b>{html.escape(shown(name))}</b><br>" if name else ""
        parts.append(f'<div style="margin:6px 0;line-height:1.9">{label}{"".join(spans)}</div>')
    stops = ", ".join(rgb2hex(colors(x)) for x in np.linspace(0, 1, 9))
    bar = f"display:inline-block;width:160px;height:10px;background:linear-gradient(to right, {stops})"
    parts.append(
        f'<div><small>{norm.vmin:.2f} <span style="{bar}"></span> {norm.vmax:.2f} reward of the prefix</small></div>'
    )
    return f'<div style="font-family:sans-serif;max-width:60em">{"".join(parts)}</div>'
