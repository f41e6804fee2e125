"""Any rewards are drawn or refused, and any text stays text."""

import pytest
from fuzz import FUZZ, TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from markup import Token, read
from matplotlib import pyplot as plt

from icrm_lib.heatmaps import token_heatmap, token_heatmap_html
from icrm_lib.heatmaps.responses import LARGEST

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
