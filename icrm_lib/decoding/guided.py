"""Guided decoding: at each step a vector over the vocabulary is added to the logits of the model that writes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from transformers import LogitsProcessor


class Step(NamedTuple):
    """What is known when the next tokens of N rows are to be chosen; V tokens of the vocabulary.

    Attributes:
        ids: tokens so far, prompts padded on the left. Shape: (N, L).
        mask: False at the padding of prompts. Bool. Shape: (N, L).
        logits: of the model that writes. Shape: (N, V).
        running: False where a response has ended and is filled up to the longest. Bool. Shape: (N,).
    """

    ids: torch.Tensor
    mask: torch.Tensor
    logits: torch.Tensor
    running: torch.Tensor


Vector = Callable[[Step], torch.Tensor]  # -> what is added, shape (N, V); nan where a token shall not be written


class Guide(LogitsProcessor):
    """Adds weight times a vector to the logits of each step, before temperature and nucleus.

    Made for one call of `generate`, to which it is given as `logits_processor=[guide]`.

    Args:
        vector: see `Vector`; `SecondModel` and `BestChildren` are two.
        weight: 0 leaves every logit as it is, and does not ask for the vector.
        prompt_mask: attention mask of the prompts where they are padded, shape (N, P); None: they are not.
        stops: closing tokens; a row with one behind its prompt has ended. Give them so that what is scored for ended
            rows is not counted.
    """

    def __init__(
        self,
        vector: Vector,
        weight: float,
        *,
        prompt_mask: torch.Tensor | None = None,
        stops: Sequence[int] = (),
    ):
        self.vector, self.weight, self.stops = vector, weight, list(stops)
        self.prompt_mask = None if prompt_mask is None else prompt_mask.bool()
        self._prompt_length: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the guided logits. Shapes: (N, L), (N, V) -> (N, V)."""
        if self.weight == 0:
            return scores
        vector = self.vector(self._step(input_ids, scores))
        return torch.where(vector.isnan(), -torch.inf, scores + self.weight * vector.to(scores.dtype))

    def _step(self, ids: torch.Tensor, logits: torch.Tensor) -> Step:
        if self._prompt_length is None:
            self._prompt_length = ids.shape[1]
        mask = torch.ones_like(ids, dtype=torch.bool)
        if self.prompt_mask is not None:
            mask[:, : self.prompt_mask.shape[1]] = self.prompt_mask.to(ids.device)
        written = ids[:, self._prompt_length :]
        ended = torch.isin(written, torch.tensor(self.stops, dtype=ids.dtype, device=ids.device)).any(1)
        return Step(ids, mask, logits, ~ended)
