"""Heatmaps: one scale, every token drawn once, and text from strangers stays text."""

import re

import matplotlib as mpl
import numpy as np
import pytest
from fuzz import FUZZ, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from markup import Token, read
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from icrm_lib.figures import DIVERGING
from icrm_lib.heatmaps import Row, reward_norm, token_heatmap, token_heatmap_html
from icrm_lib.heatmaps.responses import CLOSING, LARGEST


def tokens(*pairs):
    return [Token(text, reward) for text, reward in pairs]


PAIR = {
    "chosen": tokens(("use", 0.5), (" kind", 1.0), (" words", 2.0), ("", 2.5)),
    "rejected": tokens(("use", 0.5), (" cruel", -1.0), (" words", -1.5), ("", -1.0)),
}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def boxes(figure):
    return [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]


def texts(figure):
    return [t.get_text() for t in figure.axes[0].texts]


def test_both_responses_share_one_scale_with_a_bar():
    figure = token_heatmap(PAIR)
    assert len(boxes(figure)) == 8 and len(figure.axes) == 2
    norm, colors = reward_norm(PAIR), mpl.colormaps[DIVERGING]
    wanted = [colors(norm(t.reward)) for response in PAIR.values() for t in response]
    np.testing.assert_allclose([p.get_facecolor() for p in boxes(figure)], wanted)
    assert (norm.vmin, norm.vcenter, norm.vmax) == (-1.5, 0.5, 2.5)
    assert reward_norm(PAIR, center=0).vmin == -2.5


def test_every_token_is_written_once_with_its_value():
    shown = texts(token_heatmap(PAIR, title="a pair"))
    assert [t for t in shown if t in ("use", "kind", "cruel", "words", CLOSING)] == [
        *("use", "kind", "words", CLOSING),
        *("use", "cruel", "words", CLOSING),
    ]
    assert {"0.5", "1.0", "2.0", "2.5", "-1.5", "chosen", "rejected"} <= set(shown)


def test_long_responses_are_wrapped_inside_the_axes():
    figure = token_heatmap(tokens(*[(f" word{i}", float(i)) for i in range(120)]))
    width, (bottom, top) = figure.axes[0].get_xlim()[1], figure.axes[0].get_ylim()
    corners = [(p.get_x() + p.get_width(), p.get_y() + p.get_height()) for p in boxes(figure)]
    assert len(corners) == 120 and max(x for x, _ in corners) <= width and max(y for _, y in corners) <= bottom
    assert len({p.get_y() for p in boxes(figure)}) > 5 and top == 0
    lines = {}
    for p in boxes(figure):
        lines.setdefault(p.get_y(), []).append((p.get_x(), p.get_x() + p.get_width()))
    for spans in lines.values():  # no token covers another
        assert all(a[1] <= b[0] + 1e-9 for a, b in zip(spans, spans[1:], strict=False))


def test_further_rows_stand_under_their_tokens_on_a_scale_of_their_own():
    row = Row("value", {"chosen": [0.1, 0.5, float("nan"), 1.0]})
    figure = token_heatmap(PAIR, rows=[row])
    assert len(boxes(figure)) == 12 and len(figure.axes) == 3
    assert {".10", ".50", "1.00", "value"} <= set(texts(figure)) and "nan" not in texts(figure)


@pytest.mark.parametrize(
    ("given", "rows", "message"),
    [
        ([], [], "no tokens"),
        ({}, [], "no response"),
        (tokens(("a", float("nan"))), [], "not finite"),
        (tokens(("a", None)), [], "the reward None, which is not finite"),
        (tokens(("a", 1e300), ("b", 0.0)), [], "beyond 1e\\+38"),
        (PAIR, [Row("p", {"rejected": [0.5, None, 0.1, 0.2]})], "row 'p' has the value None"),
        (PAIR, [Row("p", {"rejected": [0.5]})], "1 values for 4 tokens of response 'rejected'"),
        (PAIR["chosen"], [Row("p", {"chosen": [0.5] * 4})], "values for 'chosen', which is none of"),
    ],
)
def test_impossible_heatmaps_are_refused(given, rows, message):
    for draw in (token_heatmap, token_heatmap_html):
        with pytest.raises(ValueError, match=message):
            draw(given, rows=rows)


@pytest.mark.filterwarnings("error")
def test_text_of_any_script_is_drawn_without_complaint(tmp_path):
    odd = ["$x^2$", "日本語", "👩‍👩‍👧", "שלום", "e\u0301", "\u202e", "\u200b", "\n", "<b>", "\\alpha", "_", "\x00"]
    figure = token_heatmap(tokens(*[(text, float(i)) for i, text in enumerate(odd)]), title="$\\frac")
    figure.savefig(tmp_path / "odd.png")
    assert {"$x^2$", "‹202E›", "‹200B›", "↵", "<b>", "‹0000›"} <= set(texts(figure))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=6))
def test_no_text_escapes_its_token(parts):
    source = token_heatmap_html(tokens(*[(part, float(i)) for i, part in enumerate(parts)]))
    reader = read(source)
    assert reader.tags <= {"div", "span", "b", "br", "small"} and reader.attributes <= {"style", "title"}
    assert not re.search("[\u034f\u115f\u180b\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\u3164\x00-\x08]", source)


def test_hovering_shows_reward_and_rows():
    source = token_heatmap_html(PAIR, rows=[Row("value", {"chosen": [0.1, 0.5, 0.7, 1.0]})])
    assert 'title="reward 1.000\nvalue 0.500"' in source and 'title="reward -1.000"' in source


REWARDS = (
    st.floats(allow_nan=True, allow_infinity=True) | st.floats(-9, 9) | st.sampled_from([None, "x", 10**400, True, 0])
)
MARKUP = st.sampled_from(
    ["<script>alert(1)</script>", "</span>", '" onload="x', "&lt;", "<!--", "\ud800", "\0", "日本", "$x$"]
)
TOKENS = st.builds(Token, TEXTS | MARKUP, REWARDS)


def is_drawable(reward):
    return isinstance(reward, int | float) and reward == reward and abs(reward) < LARGEST


@given(responses=st.dictionaries(TEXTS | MARKUP, st.lists(TOKENS, max_size=4), max_size=3), title=TEXTS | MARKUP)
@settings(max_examples=300, **FUZZ)
def test_any_rewards_are_drawn_or_refused_and_any_text_stays_text(responses, title):
    drawable = responses and all(tokens and all(is_drawable(t.reward) for t in tokens) for tokens in responses.values())
    if not drawable:
        with pytest.raises(ValueError, match="at least one|not finite"):
            token_heatmap_html(responses, title=title)
        return
    source = token_heatmap_html(responses, title=title)
    source.encode()
    reader = read(source)
    assert "<script" not in source and reader.tags <= {"div", "span", "b", "br", "small"}
    assert reader.attributes <= {"style", "title"}


@given(
    responses=st.dictionaries(TEXTS | MARKUP, st.lists(TOKENS, max_size=4), min_size=1, max_size=2),
    title=TEXTS | MARKUP,
)
@settings(max_examples=40, **FUZZ)
@pytest.mark.filterwarnings("error")
def test_any_figure_is_drawn_or_refused(responses, title):
    try:
        figure = token_heatmap(responses, title=title)
    except ValueError as error:
        assert "at least one" in str(error) or "not finite" in str(error)
        return
    figure.canvas.draw()
    plt.close(figure)
