"""Weights of response tokens beside the pairs of TRL's DPO: their columns, and how a batch lays them out."""

from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import pad

WEIGHTS = ("chosen_weights", "rejected_weights")


@dataclass
class WeightedCollator(DataCollatorForPreference):
    """TRL's collator, which also lays out the tokens' weights: `weights`, shape (2B, T), 0 at prompts and padding."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Lay out a batch of pairs; a row without weights has ones.

        Raises:
            ValueError: a row has another number of weights than of response tokens.
        """
        batch = super().torch_call(examples)
        rows = [self._weights(example, name) for name in WEIGHTS for example in examples]
        batch["weights"] = pad(
            rows, padding_value=0.0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of
        )
        return batch

    def _weights(self, example: dict[str, Any], name: str) -> torch.Tensor:
        ids = example[name.replace("weights", "ids")]
        given = example.get(name)
        values = [1.0] * len(ids) if given is None else list(given)
        if len(values) != len(ids):
            raise ValueError(
                f"{name} has {len(values)} numbers for a response of {len(ids)} tokens; give one a token, the closing "
                "token included"
            )
        whole = torch.tensor([0.0] * len(example["prompt_ids"]) + values)
        if self.max_length is None:
            return whole
        return whole[: self.max_length] if self.truncation_mode == "keep_start" else whole[-self.max_length :]
