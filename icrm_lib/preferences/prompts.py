"""Which rows have the same prompt, and splits and folds that share none."""

import unicodedata
from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from icrm_lib.records import fingerprint
from icrm_lib.tokenization import Message

_BATCH = 1000  # ids that are Python objects at a time


def identify_prompt(prompt: list[Message]) -> str:
    """Return the `prompt_id` of a prompt: 16 hex digits that white space and Unicode composition do not change."""
    return fingerprint([[m["role"], " ".join(normal_text(m["content"]).split())] for m in prompt])


def normal_text(text: str) -> str:
    """Return a text in Unicode's composed form, without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


class PromptIds:
    """The distinct prompts of a data set, 8 bytes each; `prompt_id in ids` says whether one occurs.

    Args:
        dataset: with a column `prompt_id` of 16 hex digits.
    """

    def __init__(self, dataset: Dataset):
        column = (
            prompt_id for batch in dataset.select_columns("prompt_id").iter(_BATCH) for prompt_id in batch["prompt_id"]
        )
        self._ids = np.unique(np.fromiter((int(prompt_id, 16) for prompt_id in column), np.uint64, len(dataset)))

    def __contains__(self, prompt_id: str) -> bool:
        value = np.uint64(int(prompt_id, 16))
        place = np.searchsorted(self._ids, value)
        return bool(place < len(self._ids) and self._ids[place] == value)


def split_by_prompt(
    dataset: Dataset, fractions: Sequence[float], seed: int, *, empty: bool = False
) -> tuple[Dataset, ...]:
    """Split a data set so that no prompt is in two parts.

    The part of a prompt depends on the set of prompts and the seed, not on the order of the rows.

    Args:
        dataset: with a column `prompt_id`.
        fractions: share of the *prompts* for each part; positive, sum 1.
        seed: chooses the assignment.
        empty: whether a part may stay without rows where there are too few prompts.

    Returns:
        One data set for each fraction, rows in their old order.

    Raises:
        ValueError: fractions that are not positive or do not add up to 1, or fewer prompts than it takes to
            fill each part.
    """
    if not fractions or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise ValueError(f"fractions={list(fractions)} must be positive and add up to 1; for example [0.9, 0.1]")
    ids = dataset["prompt_id"][:]
    order = sorted(set(ids), key=lambda prompt_id: fingerprint([seed, prompt_id]))
    ends = [round(sum(fractions[: i + 1]) * len(order)) for i in range(len(fractions))]
    sizes = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    if min(sizes) == 0 and not empty:
        raise ValueError(f"{len(order)} prompts cannot fill parts of {list(fractions)}; use fewer parts or more data")
    part_of = dict(zip(order, (part for part, size in enumerate(sizes) for _ in range(size)), strict=True))
    return tuple(
        dataset.select([row for row, prompt_id in enumerate(ids) if part_of[prompt_id] == part])
        for part in range(len(fractions))
    )


def prompt_folds(dataset: Dataset, folds: int = 5) -> np.ndarray:
    """Return the fold of each row, in which all rows with its prompt are.

    A fold depends on the text of the prompt alone, through `prompt_id` (xxh3): it is the same on every machine, in
    every order, and whatever other rows there are.

    Args:
        dataset: with a column `prompt_id` of 16 hex digits. N rows.
        folds: how many, at least 2. They hold about equally many prompts, not rows.

    Returns:
        numbers from 0 to folds - 1. Shape: (N,).

    Raises:
        ValueError: fewer than 2 folds.
    """
    if folds < 2:
        raise ValueError(f"folds={folds}: one is held out of the others, so at least 2 are needed; use 5")
    return np.array([int(prompt_id, 16) % folds for prompt_id in dataset["prompt_id"][:]], dtype=np.int64)


def hold_out(dataset: Dataset, fold: int, folds: int = 5) -> tuple[Dataset, Dataset]:
    """Split a data set into the rows outside a fold, to train on, and those in it, both in their old order.

    Args:
        dataset, folds: see `prompt_folds`.
        fold: which is held out, from 0.

    Raises:
        ValueError: no such fold, or one of the two parts has no row.
    """
    numbers = prompt_folds(dataset, folds)
    if fold not in range(folds):
        raise ValueError(f"fold {fold} of {folds}: they count from 0 to {folds - 1}")
    parts = [np.flatnonzero((numbers == fold) == held) for held in (False, True)]
    if not all(map(len, parts)):
        raise ValueError(f"fold {fold} of {folds} holds {len(parts[1])} of {len(dataset)} rows; use fewer folds")
    return dataset.select(parts[0]), dataset.select(parts[1])
