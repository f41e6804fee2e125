"""Batches of preference pairs: TRL's collator with what the token terms read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash
from trl.trainer.reward_trainer import DataCollatorForPreference

from icrm_lib.generator import SIBLINGS, LowerStates, columns
from icrm_lib.preferences import LABEL_KEYS
from icrm_lib.training.packing import packing
from icrm_lib.training.tree import with_siblings

REFERENCE_COLUMNS = ("chosen_reference", "rejected_reference")
STEP_COLUMNS = ("chosen_step_values", "rejected_step_values")


@dataclass
class DataCollatorWithLines(DataCollatorForPreference):
    """TRL's collator, plus `line` (B,) where the rows have one, to name those of a batch that goes wrong."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        if "line" in examples[0]:
            output["line"] = torch.tensor([row["line"] for row in examples])
        return output


@dataclass
class DataCollatorForConsistency(DataCollatorWithLines):
    """TRL's collator, plus what our terms read; rows 0..B-1 chosen, B..2B-1 rejected.

    Rows need `chosen_ids`, `rejected_ids`, `prompt_length`. Adds `response_mask` (bool),
    and by option:

    Args:
        statistic: a member of `generator.STATISTICS`, whose columns hold one log-weight a response token, or None.
            Adds `token_probs`, their exponential.
        shuffled: permute each response's log-weights, always in the same order for the same response.
        labels: adds `outcomes` (2B,), from `LABEL_KEYS` or, without them, 1 for chosen and 0 for rejected.
        steps: adds `step_values`, from `STEP_COLUMNS`, nan outside the response.
        reference: adds `reference` (2B,), from `REFERENCE_COLUMNS`.
        padding_free: adds `tokens` and `places` of a `packing.Packing`.
        siblings: K; adds `sibling_probs` (2B, T, K), entry t for the place of token t + 1, from the columns of
            `generator.SIBLINGS`, and the fields of a `tree.Tree` with their ids.
        prefix_sharing: the prompt of a pair counts once in them; adds `segments`.
        one_row: see `packing.packing`.
    """

    statistic: str | None = "logprobs"
    shuffled: bool = False
    labels: bool = False
    steps: bool = False
    reference: bool = False
    siblings: int = 0
    padding_free: bool = False
    prefix_sharing: bool = False
    one_row: bool = False

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = super().torch_call(examples)
        attended = output["attention_mask"].bool()
        prompts = torch.tensor([row["prompt_length"] for row in examples] * 2)
        mask = output["response_mask"] = attended & (torch.arange(attended.shape[1]) >= prompts[:, None])
        if self.statistic:
            values = _sides(examples, columns(self.statistic))
            if self.shuffled:
                values = [_permuted(value) for value in values]
            weights = _placed(values, mask, "generator log-probabilities", fill=0.0)
            output["token_probs"] = weights.exp() * mask
        if self.labels:
            given = LABEL_KEYS[0] in examples[0]
            default = [1.0] * len(examples) + [0.0] * len(examples)
            output["outcomes"] = torch.tensor(_sides(examples, LABEL_KEYS) if given else default).float()
        if self.steps:
            output["step_values"] = _placed(_sides(examples, STEP_COLUMNS), mask, "step values", fill=torch.nan)
        if self.reference:
            output["reference"] = torch.tensor(_sides(examples, REFERENCE_COLUMNS)).float()
        if self.padding_free:
            lengths, width = attended.sum(1).tolist(), attended.shape[1]
            shared = _common_prompts(output["input_ids"], prompts) if self.prefix_sharing else None
            packed = packing(lengths, width, shared=shared, one_row=self.one_row)._asdict()
            output |= {name: packed[name] for name in packed if name != "segments" or self.prefix_sharing}
        if self.siblings:
            ids, logprobs = self._siblings(examples, mask)
            output["sibling_probs"] = logprobs.exp()
            output |= with_siblings(output["input_ids"], mask, ids)._asdict()
        return output

    def _siblings(self, examples: list[dict[str, Any]], mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids of the next tokens and their log-probabilities, -inf where none are known. Shape of each: (2B, T, K)."""
        names, what = columns(SIBLINGS), "lists of next tokens"
        ids = _placed(_sides(examples, names[:2]), mask, what, fill=0)
        logprobs = _placed(_sides(examples, names[2:]), mask, what, fill=-torch.inf)
        # They stand where the token stands in whose place they were asked for; here, where the token before it does.
        return tuple(values.roll(-1, 1)[:, :, : self.siblings] for values in (ids, logprobs))


@dataclass
class CollatorWithStates:
    """Another collator, plus `states`: what the frozen lower layers gave for the tokens of the batch, packed as it is.

    Shape: (R, L, H) where the batch is packed, else (2B, T, H); 0 in empty places.

    Args:
        collator: makes the batch.
        states: of every row that may come.
    """

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    states: LowerStates

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        output = self.collator(examples)
        rows = [self.states.of(ids) for ids in _sides(examples, ("chosen_ids", "rejected_ids"))]
        padded = np.zeros((*output["input_ids"].shape, rows[0].shape[-1]), rows[0].dtype)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        states = torch.from_numpy(padded)
        packed = output.get("tokens")
        output["states"] = states if packed is None else states.flatten(0, 1)[packed.clamp(min=0)]
        return output


def _common_prompts(input_ids: torch.Tensor, prompts: torch.Tensor) -> list[int]:
    """Tokens of each pair's prompt; 0 where its two sides differ in them, as rows made elsewhere may."""
    chosen, rejected = input_ids.chunk(2)
    within = torch.arange(input_ids.shape[1]) < prompts[: len(chosen), None]
    same = ((chosen == rejected) | ~within).all(1)
    return torch.where(same, prompts[: len(chosen)], 0).tolist()


def _sides(examples: list[dict[str, Any]], names: tuple[str, str]) -> list:
    return [row[name] for name in names for row in examples]


def _placed(values: list, mask: torch.Tensor, what: str, *, fill: float) -> torch.Tensor:
    # One list a response, put where its tokens are; whole numbers where `fill` is one. Shape: that of mask, and what
    # else an entry has.
    placed = torch.full((*mask.shape, *np.shape(values[0])[1:]), fill)
    for row, value in enumerate(values):
        count = int(mask[row].sum())
        if len(value) != count:  # a missing one would read as log 1: fully tied
            raise ValueError(
                f"a row has {count} response tokens but {len(value)} {what}; they belong to other data: compute them "
                "again"
            )
        placed[row, mask[row]] = torch.as_tensor(np.asarray(value), dtype=placed.dtype)
    return placed


def _permuted(values: list[float]) -> np.ndarray:
    # Seeded by the values: an order drawn anew each epoch would average out to equal weights.
    values = np.asarray(values, dtype=np.float32)
    return np.random.default_rng(xxhash.xxh3_64_intdigest(values.tobytes())).permutation(values)
