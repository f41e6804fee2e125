"""The generator: fitted, asked for next-token probabilities, its answers cached."""

from icrm_lib.generator.ask import STATISTICS, Scorer, model_scorer, token_logprobs, vllm_scorer
from icrm_lib.generator.cache import cached_logprobs, columns
from icrm_lib.generator.fit import both_sides, fit_generator

__all__ = [
    "STATISTICS",
    "Scorer",
    "both_sides",
    "cached_logprobs",
    "columns",
    "fit_generator",
    "model_scorer",
    "token_logprobs",
    "vllm_scorer",
]
