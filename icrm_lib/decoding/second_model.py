"""Log-probabilities of a second language model, step by step."""

import torch
from transformers import PreTrainedModel

from icrm_lib.decoding.guided import Step
from icrm_lib.decoding.prefixes import KeptPrefixes


class SecondModel:
    """The next token's log-probabilities by a second language model, each token of a row computed once.

    Args:
        model: causal language model in evaluation mode, with the vocabulary of the one that writes.

    Attributes:
        tokens: passed through the model so far, without padding and ended rows.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.tokens = model, 0
        self._kept = KeptPrefixes(model)

    @torch.inference_mode()
    def __call__(self, step: Step) -> torch.Tensor:
        """Return log P(token | row so far), in nats. Shape: (N, V).

        Raises:
            ValueError: the model has another vocabulary than the one that writes.
        """
        fresh, positions, cache = self._kept.continued(step)
        output = self.model(
            input_ids=fresh,
            attention_mask=step.mask.long(),
            position_ids=positions,
            past_key_values=cache,
            logits_to_keep=1,
        )
        logits = output.logits[:, -1]
        if logits.shape != step.logits.shape:
            raise ValueError(
                f"the second model has {logits.shape[1]} tokens and the one that writes {step.logits.shape[1]}; take "
                "two of one vocabulary"
            )
        self.tokens += int(step.mask[step.running, -fresh.shape[1] :].sum())
        return logits.float().log_softmax(-1)
