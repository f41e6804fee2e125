"""Token rewards in; figures and HTML out. Knows no model."""

from icrm_lib.heatmaps.figure import token_heatmap
from icrm_lib.heatmaps.html import token_heatmap_html
from icrm_lib.heatmaps.responses import Row, Token, reward_norm

__all__ = ["Row", "Token", "reward_norm", "token_heatmap", "token_heatmap_html"]
