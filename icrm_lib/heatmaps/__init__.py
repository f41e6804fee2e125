"""Token rewards in; figures and HTML out. Knows no model."""

from icrm_lib.heatmaps.figure import Row, Token, reward_norm, token_heatmap, token_heatmap_html

__all__ = ["Row", "Token", "reward_norm", "token_heatmap", "token_heatmap_html"]
