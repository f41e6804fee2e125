"""Run a reward model over token sequences: little padding, shared prompts and growing prefixes once."""

import copy
import os
from collections.abc import Sequence

import numpy as np
import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from icrm_lib.language_model.causal import batches_of, padded
from icrm_lib.language_model.positions import refuse_too_long, steady_length
from icrm_lib.reward_model.head import capture_head

LEAST_SHARED = 32  # tokens; below it a pass of its own for the prompt costs more than it saves
TOKENS_PER_BATCH = 8192  # padded tokens of one forward pass


@torch.inference_mode()
def token_scores(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    starts: Sequence[int],
    *,
    pad_token_id: int,
    batch_size: int | None = None,
    shared: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Read the rewards at the tokens of each row from a position on.

    Rows of like length go together, and what several rows have in common at their beginning is encoded once and kept
    as a KV cache. Neither changes a reward by more than rounding. A row so long that its company would change its RoPE
    frequencies (`positions.steady_length`) is scored alone.

    Args:
        model: one-label sequence classification model with a reward at every position, in evaluation mode.
        rows: token ids. N lists, none empty.
        starts: first position asked for, one a row.
        pad_token_id: padding id; it is masked, so any will do.
        batch_size: most rows of one forward pass; as many as `TOKENS_PER_BATCH` padded tokens allow when None.
        shared: number of leading tokens of each row that other rows may have, too (the prompt), at most its start;
            `starts` when None.

    Returns:
        per row float32 rewards. Shape of each: (len(row) - start,).

    Raises:
        SequenceTooLong: a row is longer than the model's positions.
    """
    rows, starts = [list(row) for row in rows], list(starts)
    lengths = [len(row) for row in rows]
    refuse_too_long(model.config, lengths)
    results: list[np.ndarray] = [np.empty(0, dtype=np.float32)] * len(rows)
    steady = steady_length(model.config)
    together = [i for i, length in enumerate(lengths) if steady is None or length <= steady]
    for i in set(range(len(rows))).difference(together):
        results[i] = forward_alone(model, rows[i])[starts[i] :].copy()
    unshared: list[int] = []
    for prefix, members in _groups(rows, together, starts if shared is None else list(shared)):
        if len(members) < 2 or len(prefix) < LEAST_SHARED:
            unshared.extend(members)
        else:
            _score_group(model, rows, starts, members, prefix, pad_token_id, batch_size, results)
    for members in batches_of(unshared, lengths, tokens=TOKENS_PER_BATCH, rows=batch_size):
        rewards = forward(model, [rows[i] for i in members], pad_token_id)
        for values, i in zip(rewards, members, strict=True):
            results[i] = values[starts[i] : len(rows[i])].copy()
    return results


def _groups(rows: list[list[int]], members: list[int], shared: list[int]) -> list[tuple[list[int], list[int]]]:
    # The last token is always computed, so at least one is left to run when the rest is shared.
    groups: dict[tuple[int, ...], list[int]] = {}
    for index in members:
        groups.setdefault(tuple(rows[index][: min(shared[index], len(rows[index]) - 1)]), []).append(index)
    return [(list(prefix), members) for prefix, members in groups.items()]


def _score_group(model, rows, starts, members, prefix, pad_token_id, batch_size, results) -> None:
    """Score rows with one common beginning: the beginning once, then the rest of each."""
    cache, skip = DynamicCache(config=model.config), len(prefix)
    first = forward(model, [prefix], pad_token_id, cache=cache)[0]
    # Each row of a batch holds a copy of the prompt's keys and values, so the prompt counts as its tokens, too.
    batches = list(batches_of(members, [len(row) for row in rows], tokens=TOKENS_PER_BATCH, rows=batch_size))
    for number, batch in enumerate(batches):
        own = cache if number == len(batches) - 1 else copy.deepcopy(cache)
        own.batch_repeat_interleave(len(batch))
        rewards = forward(model, [rows[i][skip:] for i in batch], pad_token_id, cache=own, seen=skip)
        for values, i in zip(rewards, batch, strict=True):
            tail = values[max(0, starts[i] - skip) : len(rows[i]) - skip]
            results[i] = np.concatenate([first[starts[i] :], tail])


def forward(
    model: PreTrainedModel,
    rows: list[list[int]],
    pad_token_id: int,
    *,
    cache: Cache | None = None,
    seen: int = 0,
) -> np.ndarray:
    """One forward pass, right-padded so that causal attention never sees the padding. Shape: (N, T), float32."""
    batch = padded(rows, pad_token_id, seen=seen, device=model.device)
    with capture_head(model) as head:
        model(**batch, past_key_values=cache, use_cache=cache is not None)
    return head.rewards.float().cpu().numpy()


def forward_alone(model: PreTrainedModel, row: list[int]) -> np.ndarray:
    """Rewards of one row whose RoPE frequencies depend on its length. Shape: (T,), float32."""
    forward(model, [row[:1]], 0)  # dynamic NTK keeps the frequencies of the longest row until a short one comes
    return forward(model, [row], 0)[0]


def check_ids(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> None:
    """Raise ValueError unless every row is a list of token ids that the model has embeddings for."""
    if isinstance(rows, str) or not all(isinstance(row, Sequence | np.ndarray) for row in rows):
        raise ValueError("rows must be a list of lists of token ids; put a single one in a list")
    limit = model.get_input_embeddings().num_embeddings
    for number, row in enumerate(rows):
        if not len(row):
            raise ValueError(f"row {number} has no token; leave it out")
        ids = np.asarray(row)
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= limit:
            wrong = next((i for i in row if not isinstance(i, int | np.integer) or not 0 <= i < limit), row[0])
            raise ValueError(f"row {number} holds {wrong!r}; token ids are whole numbers from 0 to {limit - 1}")


def last_token(ids: Sequence[int], pad_token_id: int | None) -> int:
    """Return where `transformers` reads the score of a sequence: the last position that is not padding.

    Args:
        ids: token ids, not empty.
        pad_token_id: of the model's configuration; None reads at the end.
    """
    for place in range(len(ids) - 1, 0, -1):
        if ids[place] != pad_token_id:
            return place
    return 0


class PrefixScorer:
    """The reward of a growing sequence, each token computed once.

    Args:
        model: one-label sequence classification model, in evaluation mode.

    Attributes:
        ids: tokens so far.
        rewards: reward after each of them, float32.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.ids: list[int] = []
        self.rewards = np.empty(0, dtype=np.float32)
        self._cached = 0  # tokens that the cache holds
        self._cache = DynamicCache(config=model.config)
        self._steady = steady_length(model.config)

    @torch.inference_mode()
    def update(self, ids: Sequence[int]) -> np.ndarray:
        """Move on to another sequence; what it has in common with the present one is not computed again.

        Where RoPE's frequencies depend on the length, a sequence beyond `positions.steady_length` is computed whole.

        Args:
            ids: the whole sequence, usually the present one and a few more tokens. (A tokenizer may cut the last word
                anew when more of it is known, so the new sequence need not continue the old one.)

        Returns:
            the reward after each token. Shape: (len(ids),).

        Raises:
            SequenceTooLong: more tokens than the model's positions.
            ValueError: no token.
        """
        ids = list(ids)
        if not ids:
            raise ValueError("ids [] is empty: give at least one token")
        refuse_too_long(self.model.config, [len(ids)])
        if self._steady is not None and len(ids) > self._steady:
            self.rewards = forward_alone(self.model, ids)
            self._cache, self._cached = DynamicCache(config=self.model.config), 0
        else:
            common = min(len(os.path.commonprefix([ids, self.ids])), self._cached)
            if common < self._cached:
                self._cut(common)
            if common < len(ids):
                fresh = forward(self.model, [ids[common:]], 0, cache=self._cache, seen=common)[0]
                self.rewards = np.concatenate([self.rewards[:common], fresh])
            self._cached = len(ids)
        self.ids = ids
        return self.rewards

    def _cut(self, length: int) -> None:
        try:
            self._cache.crop(length - self._cached)  # minus the number of tokens to forget
        except RuntimeError:  # a sliding window has dropped what lies before it
            self._cache = DynamicCache(config=self.model.config)
            if length:
                forward(self.model, [self.ids[:length]], 0, cache=self._cache)
        self.rewards = self.rewards[:length]
