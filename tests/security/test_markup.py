"""Text of strangers stays text where it is shown: heatmaps, tables, frames."""

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from markup import read

from icrm_lib.heatmaps import Row, token_heatmap_html
from icrm_lib.report import tables
from icrm_lib.reward_model import TokenReward

MARKUP = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='a()'>",
    "</style></div>&lt;b&gt;",
    "' style='x",
    "a|b_c%$\\",
)


@pytest.mark.parametrize("text", MARKUP)
def test_text_in_a_heatmap_stays_text(text):
    tokens = {text: [TokenReward(text, 0, len(text), 1.0), TokenReward("", 0, 0, 0.0)]}
    page = read(token_heatmap_html(tokens, rows=[Row(text, {text: [0.1, 0.2]})], title=text))
    assert page.tags == {"div", "b", "br", "span", "small"} and page.attributes == {"style", "title"}
    assert page.text.count(text) == 3 and all(text in value for value in page.values)


@pytest.mark.parametrize("text", MARKUP)
def test_text_in_a_table_stays_text(text):
    rows = [{"method": m, "measure": text, "mean": 0.5, "low": 0.4, "high": 0.6, "best": True} for m in (text, "plain")]
    frame, table = pd.DataFrame(rows).assign(seeds=2), tables.Table("t", text, text, {}, {})
    page = read(MarkdownIt("commonmark", {"html": True}).enable("table").render(tables.to_markdown(table, frame)))
    structure = {"h2", "p", "table", "thead", "tbody", "tr", "th", "td", "strong"}
    assert page.tags <= structure and page.text.count(text) == 4 and page.attributes == set()
    latex = tables.to_latex(table, frame)
    assert latex.count(tables._latex(text)) == 3 and "<script" not in latex
    assert "<script" not in pd.DataFrame({text: [text]})._repr_html_()  # how a notebook shows a frame
