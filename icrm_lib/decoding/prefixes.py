"""What a model that guides has computed of growing rows, kept from step to step."""

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from icrm_lib.decoding.guided import Step
from icrm_lib.language_model.positions import steady_length


class KeptPrefixes:
    """A KV cache of rows that grow together; begun anew where rows do not continue those before.

    Args:
        model: causal or one-label.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self._steady = steady_length(model.config)
        self._ids: torch.Tensor | None = None
        self._cache = DynamicCache(config=model.config)

    def continued(self, step: Step) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Take the rows as computed up to their ends, and say what must be run for it.

        Where RoPE's frequencies depend on the length, rows beyond `positions.steady_length` are run whole.

        Args:
            step: rows so far.

        Returns:
            the tokens to run, their positions, shape (N, F) each, and the cache to run them with.
        """
        known = 0 if self._ids is None else self._ids.shape[1]
        size = step.ids.shape[1]
        grown = known < size and (known == 0 or torch.equal(step.ids[:, :known], self._ids))
        if not grown or (self._steady is not None and size > self._steady):
            known, self._cache = 0, DynamicCache(config=self.model.config)
        self._ids = step.ids.clone()
        positions = (step.mask.long().cumsum(1) - 1).clamp(min=0)
        return step.ids[:, known:], positions[:, known:], self._cache
