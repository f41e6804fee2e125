"""Reward-model benchmarks, one file each: their items and their official arithmetic.

items = load_rewardbench2()                        # or load_rewardbench2("folder or file")
print(items)                                       # where from, how many, what differs from the official set
print(rewardbench2(score_items(items, model.score)))
"""

from icrm_lib.benchmarks.reward_bench import REWARDBENCH_WEIGHTS, load_prior_sets, load_rewardbench, rewardbench
from icrm_lib.benchmarks.reward_bench_2 import load_rewardbench2, rewardbench2
from icrm_lib.benchmarks.rm_bench import load_rmbench, rmbench
from icrm_lib.benchmarks.scores import score_items

__all__ = [
    "REWARDBENCH_WEIGHTS",
    "load_prior_sets",
    "load_rewardbench",
    "load_rewardbench2",
    "load_rmbench",
    "rewardbench",
    "rewardbench2",
    "rmbench",
    "score_items",
]
