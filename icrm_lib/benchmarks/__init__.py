"""Reward-model benchmarks: their items and their official arithmetic."""

from icrm_lib.benchmarks.items import load_rewardbench, load_rewardbench2, load_rmbench, score_items
from icrm_lib.benchmarks.official import REWARDBENCH_WEIGHTS, rewardbench, rewardbench2, rmbench, ties_score

__all__ = [
    "REWARDBENCH_WEIGHTS",
    "load_rewardbench",
    "load_rewardbench2",
    "load_rmbench",
    "rewardbench",
    "rewardbench2",
    "rmbench",
    "score_items",
    "ties_score",
]
