"""Batches without padding: how pairs are laid into full rows, prompts once, and how a model is called with them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from icrm_lib.language_model.attention import dense_mask, unmasked_architecture, why_not_masked
from icrm_lib.reward_model.head import HeadOutput

MOST_PADDING = 0.05  # share of a packed batch that may be padding
_PROMPT, _CHOSEN, _REJECTED = range(3)  # what a segment is; a response alone with its prompt is a prompt


class Packing(NamedTuple):
    """Where the tokens of a padded batch of N rows and T columns lie in its packed form of R rows and L columns.

    Attributes:
        tokens: index into the flattened padded batch of each packed token, -1 where a row ends early. Shape: (R, L).
        segments: 3 * number of the unit, + 0 in what the unit shares, + 1 or 2 in a branch; -1 in empty places. A token
            sees what lies before it in its own branch and in what the unit shares. Shape: (R, L).
        places: index into the flattened packed batch of each padded token, 0 at padding. Shape: (N, T).
    """

    tokens: torch.Tensor
    segments: torch.Tensor
    places: torch.Tensor


def packing(
    lengths: Sequence[int], width: int, *, shared: Sequence[int] | None = None, one_row: bool = False
) -> Packing:
    """Lay the rows of a right-padded batch into as many rows as possible that are full but for `MOST_PADDING`.

    Many short rows rather than one long one, because attention costs the square of a row's length where the kernel does
    not know of packing. Longest unit first, each into the emptiest row. A unit is a row of the batch, or where `shared`
    says so a pair: the common beginning once, then both rests.

    Args:
        lengths: tokens of each row, >= 1; with `shared` the first half chosen, the second half rejected.
        width: of the padded batch.
        shared: number of leading tokens that both rows of a pair have and may share, 0 for none; one a pair.
        one_row: put all into one row, for attention kernels that know of packing.
    """
    units = _units(lengths, shared)
    sizes = [sum(stop - start for _, start, stop, _ in unit) for unit in units]
    bins = _bins(sizes, one_row)
    longest = max(sum(sizes[unit] for unit in row) for row in bins)
    tokens, segments = torch.full((2, len(bins), longest), -1).unbind()
    places = torch.zeros(len(lengths) * width, dtype=torch.long)
    for number, row in enumerate(bins):
        at = 0
        for unit in row:
            for index, start, stop, branch in units[unit]:
                end = at + stop - start
                tokens[number, at:end] = torch.arange(index * width + start, index * width + stop)
                segments[number, at:end] = 3 * unit + branch
                places[index * width + start : index * width + stop] = torch.arange(at, end) + number * longest
                at = end
    places = places.view(len(lengths), width)
    for pair, count in enumerate(shared or ()):
        places[pair + len(lengths) // 2, :count] = places[pair, :count]
    return Packing(tokens, segments, places)


def _units(lengths: Sequence[int], shared: Sequence[int] | None) -> list[list[tuple[int, int, int, int]]]:
    """Return what lies together, as (row, first column, last column + 1, branch)."""
    if shared is None:
        return [[(row, 0, length, _PROMPT)] for row, length in enumerate(lengths)]
    units = []
    for pair, count in enumerate(shared):
        other = pair + len(lengths) // 2
        if count:
            rests = [(pair, count, lengths[pair], _CHOSEN), (other, count, lengths[other], _REJECTED)]
            units.append([(pair, 0, count, _PROMPT), *rests])
        else:
            units += [[(row, 0, lengths[row], _PROMPT)] for row in (pair, other)]
    return units


def _bins(sizes: list[int], one_row: bool) -> list[list[int]]:
    order = sorted(range(len(sizes)), key=lambda unit: -sizes[unit])
    for count in range(1 if one_row else len(sizes), 0, -1):
        bins: list[list[int]] = [[] for _ in range(count)]
        loads = [0] * count
        for unit in order:
            emptiest = loads.index(min(loads))
            bins[emptiest].append(unit)
            loads[emptiest] += sizes[unit]
        if sum(loads) >= (1.0 - MOST_PADDING) * count * max(loads):
            break
    return bins


def layout_of(
    config: PreTrainedConfig, device: str, padding_free: bool | str, prefix_sharing: bool | str
) -> dict[str, bool]:
    """Return how batches of a model are laid out: `padding_free`, `prefix_sharing`, `one_row` of the collator.

    A dense mask over a whole row costs what padding would have cost, so on a GPU rows are packed only for kernels that
    know of packing: FlashAttention (no masks: no sharing) and FlexAttention (block masks).

    Args:
        config: of the model, with the attention implementation it was loaded with.
        device: "cpu", "cuda", ...
        padding_free, prefix_sharing: True, False, or "auto": where it is exact and worth it.

    Raises:
        ValueError: True where the model cannot; says why.
    """
    attention = config._attn_implementation or ""
    flash, on_cpu = "flash" in attention, device == "cpu"
    reason, no_masks = unmasked_architecture(config), why_not_masked(config)
    if prefix_sharing is True and no_masks:
        raise ValueError(f"prefix_sharing=True, but {no_masks}; leave it to 'auto'")
    efficient = on_cpu or attention == "flex_attention"
    can_share = no_masks is None and efficient and padding_free is not False
    share = prefix_sharing is True or (prefix_sharing == "auto" and can_share)
    packed = share or padding_free is True or (padding_free == "auto" and reason is None and (on_cpu or flash))
    return {"padding_free": packed, "prefix_sharing": share, "one_row": packed and flash}


def _mask(segments: torch.Tensor, implementation: str, dtype: torch.dtype) -> Any:
    """Return who sees whom, in the form that the attention takes. Shape: (R, 1, L, L)."""
    size = segments.shape[1]

    def sees(row, head, query, key):
        mine, other = segments[row, query], segments[row, key]
        shares = (mine // 3 == other // 3) & (other % 3 == _PROMPT)
        return (query >= key) & ((mine == other) | shares)

    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask  # starts the compiler: seconds, for GPUs alone

        return create_block_mask(sees, len(segments), None, size, size, device=segments.device)
    rows = torch.arange(len(segments), device=segments.device)[:, None, None]
    columns = torch.arange(size, device=segments.device)
    return dense_mask(sees(rows, None, columns[:, None], columns), implementation, dtype)


def call_packed(
    model: torch.nn.Module, head: HeadOutput, packed: dict[str, torch.Tensor], hidden_rows: int, attention: str
) -> Callable:
    """Return a stand-in for `model` that runs a padded batch packed and answers as if it had been padded.

    What `head` captured is brought into the padded form too, the hidden states for the first `hidden_rows` rows only.
    Where no prompt is shared (no `segments`), positions that begin anew keep the rows apart, as `transformers` has it,
    and no mask of ours is made.

    Args:
        model: a one-label sequence classification model, or a wrapper around it.
        head: what is captured of its call.
        packed: fields of a `Packing`.
        hidden_rows: see above.
        attention: the model's attention implementation.
    """
    tokens, places = packed["tokens"], packed["places"]

    def call(input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> SequenceClassifierOutput:
        width = input_ids.shape[1]
        ids = input_ids.flatten()[tokens.clamp(min=0)]
        # A token's column is its position; an empty place is a sequence of its own.
        inputs = {"input_ids": ids, "position_ids": torch.where(tokens >= 0, tokens % width, 0), "use_cache": False}
        if "segments" in packed:
            inputs["attention_mask"] = _mask(packed["segments"], attention, next(model.parameters()).dtype)
        model(**inputs)
        head.rewards = head.rewards.flatten()[places]  # at padding arbitrary; masked by all who read it
        head.hidden = head.hidden.flatten(0, 1)[places[:hidden_rows]]
        closing = head.rewards.gather(1, attention_mask.sum(1, keepdim=True) - 1)
        return SequenceClassifierOutput(logits=closing)

    return call
