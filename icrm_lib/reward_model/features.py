"""Hidden states of frozen models as features of tokens: chosen layers at chosen positions, kept on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from icrm_lib import records
from icrm_lib.language_model.causal import batches_of, padded, without_adapter
from icrm_lib.language_model.positions import refuse_too_long, steady_length
from icrm_lib.reward_model.scoring import TOKENS_PER_BATCH, check_ids

STATES, STARTS = "states.npy", "starts.npy"


@dataclass(frozen=True)
class Features:
    """Hidden states of N rows, one row after the other.

    Attributes:
        states: memory-mapped. Shape: (positions of all rows, layers, H).
        starts: where each row begins, and the end. Shape: (N + 1,).
    """

    states: np.ndarray
    starts: np.ndarray

    def of(self, row: int) -> np.ndarray:
        """Hidden states of a row, from 0, at its positions. Shape: (its positions, layers, H)."""
        return self.states[self.starts[row] : self.starts[row + 1]]


def kept_features(
    model: PreTrainedModel,
    rows: Sequence[list[int]],
    layers: Sequence[int],
    folder: Path,
    key: dict,
    *,
    pad_token_id: int,
    positions: Sequence[Sequence[int]] | None = None,
    dtype: str = "float32",
    tokens_per_batch: int = TOKENS_PER_BATCH,
) -> Features:
    """Return hidden states of rows, computed at most once.

    They are those of `model(..., output_hidden_states=True)` on each row alone, whatever the batches, up to rounding.

    Args:
        model: causal or one-label, in evaluation mode; PEFT-wrapped or not.
        rows: token ids. N lists, none empty.
        layers: 0 for the embeddings, n for what comes after layer n; negative ones count from the last, which is
            normalised as the output layer or head receives it.
        folder: where features lie; these in a folder of their own, named by what they depend on.
        key: what tells this model from others (JSON-able); rows, layers, positions and type are added.
        pad_token_id: padding id; it is masked, so any will do.
        positions: of each row, those asked for, from 0; None: all.
        dtype: "float32" or "float16" (half the disk; numbers beyond 65504 are refused).
        tokens_per_batch: padded tokens of one forward pass.

    Raises:
        FloatingPointError: a state that is not finite in this type.
        SequenceTooLong: a row is longer than the model's positions.
        ValueError: a layer, position or type that is not there.
    """
    check_ids(model, rows)
    layers = _layers(model, layers)
    places = [list(range(len(row))) for row in rows] if positions is None else [list(at) for at in positions]
    _check(rows, places, dtype)
    asked = {"rows": [list(map(int, row)) for row in rows], "positions": places}
    key = {**key, "layers": layers, "type": dtype, "asked": records.fingerprint(asked)}
    folder = Path(folder) / f"features-{records.fingerprint(key)}"
    if not records.is_sealed(folder, key):
        with records.locked(folder):
            if not records.is_sealed(folder, key):  # nobody has made it while this run waited
                with records.sealed_folder(folder, key) as temporary:
                    starts = np.cumsum([0, *map(len, places)])
                    np.save(temporary / STARTS, starts)
                    shape = (int(starts[-1]), len(layers), model.config.get_text_config().hidden_size)
                    states = np.lib.format.open_memmap(temporary / STATES, "w+", np.dtype(dtype), shape)
                    _fill(states, starts, model, rows, places, layers, pad_token_id, tokens_per_batch)
                    states.flush()
    return Features(np.load(folder / STATES, mmap_mode="r"), np.load(folder / STARTS))


def _layers(model: PreTrainedModel, layers: Sequence[int]) -> list[int]:
    """Count layers from the first."""
    last = model.config.get_text_config().num_hidden_layers
    if not len(layers) or not all(-last - 1 <= layer <= last for layer in layers):
        raise ValueError(
            f"layers are {list(layers)}; give at least one of 0 (the embeddings) to {last}, or of -{last + 1} to -1"
        )
    return [layer % (last + 1) for layer in layers]


def _check(rows: Sequence[list[int]], places: list[list[int]], dtype: str) -> None:
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}; give 'float16' or 'float32'")
    if len(places) != len(rows) or not any(places):
        raise ValueError(
            f"there are {len(rows)} rows and {len(places)} lists of positions, {sum(map(len, places))} in all; give "
            "one list a row, and at least one position"
        )
    for number, (row, at) in enumerate(zip(rows, places, strict=True)):
        if any(not 0 <= place < len(row) for place in at):
            raise ValueError(f"positions {at} of row {number} are not all inside its {len(row)} tokens; count from 0")


@torch.inference_mode()
def _fill(states, starts, model, rows, places, layers, pad_token_id, tokens_per_batch) -> None:
    """Write the states of every row, batch by batch; a row that would change RoPE's frequencies goes alone."""
    lengths = [len(row) for row in rows]
    refuse_too_long(model.config, lengths)
    steady, decoder = steady_length(model.config), without_adapter(model).base_model
    together = [i for i, length in enumerate(lengths) if steady is None or length <= steady]
    alone = [[i] for i in sorted(set(range(len(rows))) - set(together))]
    for members in [*batches_of(together, lengths, tokens=tokens_per_batch), *alone]:
        batch = padded([rows[i] for i in members], pad_token_id, device=model.device)
        if steady is not None:  # dynamic NTK keeps the frequencies of the longest row until a short one comes
            decoder(input_ids=batch["input_ids"][:, :1], use_cache=False)
        hidden = decoder(**batch, use_cache=False, output_hidden_states=True).hidden_states
        chosen = torch.stack([hidden[layer] for layer in layers], 2).float()
        for number, i in enumerate(members):
            with np.errstate(over="ignore"):  # refused in the next lines
                values = chosen[number, places[i]].cpu().numpy().astype(states.dtype)
            if not np.isfinite(values).all():
                raise FloatingPointError(
                    f"hidden states of row {i} are not finite in {states.dtype}; set dtype to float32, or look at the "
                    "model's weights"
                )
            states[starts[i] : starts[i + 1]] = values
