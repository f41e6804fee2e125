"""The generator: fitted, asked for next-token probabilities, its answers cached."""

from icrm_lib.generator.cache import (
    STATISTICS,
    cached_logprobs,
    fit_generator,
    model_fingerprint,
    model_scorer,
    token_logprobs,
    vllm_scorer,
)

__all__ = [
    "STATISTICS",
    "cached_logprobs",
    "fit_generator",
    "model_fingerprint",
    "model_scorer",
    "token_logprobs",
    "vllm_scorer",
]
