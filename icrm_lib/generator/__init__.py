"""The generator: fitted, asked for next-token probabilities, its answers cached."""

from icrm_lib.generator.ask import (
    MOST_SIBLINGS,
    SIBLINGS,
    STATISTICS,
    Scorer,
    Siblings,
    model_scorer,
    next_tokens,
    token_logprobs,
    vllm_scorer,
)
from icrm_lib.generator.cache import cached_logprobs, columns
from icrm_lib.generator.fit import both_sides, fit_generator
from icrm_lib.generator.states import LowerStates, cached_states, states_reader

__all__ = [
    "MOST_SIBLINGS",
    "SIBLINGS",
    "STATISTICS",
    "LowerStates",
    "Scorer",
    "Siblings",
    "both_sides",
    "cached_logprobs",
    "cached_states",
    "columns",
    "fit_generator",
    "model_scorer",
    "next_tokens",
    "states_reader",
    "token_logprobs",
    "vllm_scorer",
]
