"""Hidden states of the lower layers on disk: every row once, memory-mapped, with the model's own log-probabilities.

Like the generator's answers (`cache`): made window by window, sealed and keyed by all that they depend on.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from icrm_lib import records, runtime
from icrm_lib.generator.ask import Scorer, token_logprobs
from icrm_lib.language_model.causal import batches_of, padded
from icrm_lib.language_model.checkpoints import data_fingerprint
from icrm_lib.language_model.lower_layers import keeping_states, refuse_unless_separable
from icrm_lib.language_model.positions import refuse_too_long, steady_length

logger = logging.getLogger(__name__)

STATES, LOGPROBS, ROWS = "states.npy", "logprobs.npy", "rows.npy"
SIDES = ("chosen_ids", "rejected_ids")
WINDOW = 2**15  # tokens passed through the model between two seals; bounds memory and what a kill costs
PROBED = 4  # rows on which upper and lower layers are tried apart
ROW = np.dtype([("hash", np.uint64), ("start", np.int64), ("length", np.int64)])

# Rows of token ids -> of each its hidden states, shape (T, H), and log-probabilities, shape (T,), or none of these.
Reader = Callable[[Sequence[list[int]]], tuple[list[np.ndarray], list[np.ndarray]]]


@dataclass(frozen=True)
class LowerStates:
    """What the lower layers gave for some rows, and what the whole model says of their tokens.

    Attributes:
        layers: how many layers the states come after.
        states: of all rows, one after the other; memory-mapped. Shape: (tokens, H).
        logprobs: log P(token | those before it), 0 at the first of a row; memory-mapped. Shape: (tokens,); (0,) where
            the pass was not asked for them.
        rows: where each row lies, sorted by hash. `ROW`, shape: (rows,).
    """

    layers: int
    states: np.ndarray
    logprobs: np.ndarray
    rows: np.ndarray

    def of(self, ids: Sequence[int]) -> np.ndarray:
        """Return the hidden states of a row. Shape: (len(ids), H).

        Raises:
            ValueError: the row is not among those that were passed through the model.
        """
        return self.states[self._place(ids)]

    def scorer(self) -> Scorer:
        """Return what answers as the whole model would, without running it.

        Raises:
            ValueError: the pass was not asked for log-probabilities.
        """
        if not len(self.logprobs):
            raise ValueError(
                "these hidden states were kept without log-probabilities; make them with probabilities=True"
            )
        return lambda rows: [np.asarray(self.logprobs[self._place(ids)][start:]) for ids, start in rows]

    def _place(self, ids: Sequence[int]) -> slice:
        key = _hash(ids)
        at = int(np.searchsorted(self.rows["hash"], key))
        if at == len(self.rows) or self.rows[at]["hash"] != key or self.rows[at]["length"] != len(ids):
            raise ValueError(
                f"a row of {len(ids)} tokens has no hidden states kept; they belong to other data: make them of all "
                "rows that are trained and evaluated on"
            )
        start = int(self.rows[at]["start"])
        return slice(start, start + len(ids))


def cached_states(
    datasets: Sequence[Dataset],
    make_reader: Callable[[], Reader],
    folder: Path,
    key: dict,
    *,
    layers: int,
    state_type: str = "float16",
) -> LowerStates:
    """Return the hidden states of every row of some tokenised pairs, computed at most once.

    A row that stands in several pairs is passed once. What was made from another model, other data or other settings,
    and what is truncated or damaged, is made again; a pass that was cut off goes on with the window it was at.

    Args:
        datasets: of `preferences.tokenize_pairs`.
        make_reader: called only where something must be computed; see `states_reader`.
        folder: where caches lie; each in a folder of its own, named by what it depends on.
        key: what the values depend on beside the data: model, settings (JSON-able).
        layers: how many lower layers, >= 1.
        state_type: "float16" (2 bytes a number) or "float32".

    Raises:
        FloatingPointError: states that are not finite in this type.
        ValueError: an unknown type, or a model whose lower layers cannot be run apart.
    """
    if state_type not in ("float16", "float32"):
        raise ValueError(f"unknown state_type {state_type!r}; choose float16 or float32")
    key = {**key, "layers": layers, "type": state_type, "data": [data_fingerprint(part, SIDES) for part in datasets]}
    folder = Path(folder) / f"states-{records.fingerprint(key)}"
    if not records.is_sealed(folder, key, verify=True):
        with records.locked(folder):
            if not records.is_sealed(folder, key, verify=True):  # nobody has made it while this run waited
                if folder.exists():
                    logger.warning("%s is truncated or damaged; making it again", runtime.display_path(folder))
                _make(datasets, make_reader, folder, key)
    shutil.rmtree(_parts(folder), ignore_errors=True)
    return LowerStates(layers, *(np.load(folder / name, mmap_mode="r") for name in (STATES, LOGPROBS, ROWS)))


def _make(datasets: Sequence[Dataset], make_reader: Callable[[], Reader], folder: Path, key: dict) -> None:
    distinct, lengths = _distinct_rows(datasets)
    windows, reader = [], None
    parts = list(_windows(lengths))
    for number, members in enumerate(tqdm(parts, desc="lower layers", disable=not runtime.watched())):
        window, place = _parts(folder) / f"{number:06d}", {**key, "window": number}
        windows.append(window)
        if records.is_sealed(window, place, verify=True):
            continue
        reader = reader or make_reader()
        states, logprobs = reader([_ids(datasets, distinct[row]) for row in members])
        with np.errstate(over="ignore"):  # refused in the next line
            states = np.concatenate(states).astype(key["type"])
        _refuse_non_finite(states)
        with records.sealed_folder(window, place) as temporary:
            np.save(temporary / STATES, states)
            np.save(temporary / LOGPROBS, np.concatenate([*logprobs, np.empty(0)]).astype(np.float32))
    starts = np.r_[0, np.cumsum(lengths)[:-1]]
    rows = np.array(
        [(where[0], start, size) for where, start, size in zip(distinct, starts, lengths, strict=True)], ROW
    )
    with records.sealed_folder(folder, key) as temporary:
        for name in (STATES, LOGPROBS):
            _join([window / name for window in windows], temporary / name)
        np.save(temporary / ROWS, np.sort(rows, order="hash"))


def _distinct_rows(datasets: Sequence[Dataset]) -> tuple[list[tuple[int, int, int, str]], np.ndarray]:
    """Return each row once, as hash, data set, pair and side, and its number of tokens."""
    found: dict[int, tuple[int, int, int, str]] = {}
    lengths = []
    for number, dataset in enumerate(datasets):
        for side in SIDES:
            for pair, ids in enumerate(dataset.select_columns(side)):
                key = _hash(ids[side])
                if key not in found:
                    found[key] = (key, number, pair, side)
                    lengths.append(len(ids[side]))
    return list(found.values()), np.array(lengths, dtype=np.int64)


def _windows(lengths: np.ndarray) -> Iterator[range]:
    """Cut rows into windows of about `WINDOW` tokens."""
    start, total = 0, 0
    for row, length in enumerate(lengths.tolist()):
        if total and total + length > WINDOW:
            yield range(start, row)
            start, total = row, 0
        total += length
    if total:
        yield range(start, len(lengths))


def _ids(datasets: Sequence[Dataset], where: tuple[int, int, int, str]) -> list[int]:
    _, number, pair, side = where
    return datasets[number][pair][side]


def _join(parts: list[Path], whole: Path) -> None:
    """Write arrays one after the other into one file, a part at a time in memory."""
    arrays = [np.load(part, mmap_mode="r") for part in parts]
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    joined, at = np.lib.format.open_memmap(whole, "w+", arrays[0].dtype, shape), 0
    for values in arrays:
        joined[at : at + len(values)] = values
        at += len(values)
    joined.flush()


def states_reader(
    model: PreTrainedModel,
    layers: int,
    pad_token_id: int,
    *,
    tokens_per_batch: int = 4096,
    probabilities: bool = True,
    **options: float,
) -> Reader:
    """Return what passes rows through a whole causal model once, and keeps what its lower layers give.

    Args:
        model: frozen, in evaluation mode.
        layers: how many lower layers, >= 1.
        pad_token_id: padding id.
        tokens_per_batch: padded tokens in one forward pass.
        probabilities: ask for the tokens' log-probabilities, too: a product with the vocabulary.
        options: temperature, top_p of them; see `token_logprobs`.

    Raises:
        ValueError: its lower layers cannot be run apart, or its rotary frequencies depend on the longest row.
    """
    if steady_length(model.config) is not None:
        raise ValueError(
            f"the RoPE frequencies of this {model.config.model_type} depend on the length of a batch, so states of one "
            "pass do not fit another; set frozen_states to none"
        )
    tried = []

    def read(rows: Sequence[list[int]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        kept: list[np.ndarray] = [np.empty(0)] * len(rows)
        answers = list(kept) if probabilities else []
        lengths = [len(ids) for ids in rows]
        refuse_too_long(model.config, lengths)
        for members in batches_of(range(len(rows)), lengths, tokens=tokens_per_batch):
            batch = padded([rows[i] for i in members], pad_token_id, device=model.device)
            if not tried:
                refuse_unless_separable(model, layers, {name: value[:PROBED] for name, value in batch.items()})
                tried.append(True)
            with keeping_states(model, layers) as states, torch.no_grad():
                found = [token_logprobs(model, batch, **options)] if probabilities else []
                if not found:
                    model.base_model(**batch, use_cache=False)
            for result, values in zip((kept, answers), (states[0].float(), *found), strict=False):
                values = values.cpu().numpy()
                for position, i in enumerate(members):
                    result[i] = values[position, : lengths[i]].copy()
        return kept, answers

    return read


def _hash(ids: Sequence[int]) -> int:
    return xxhash.xxh3_64_intdigest(np.asarray(ids, dtype=np.int64).tobytes())


def _parts(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.parts")


def _refuse_non_finite(states: np.ndarray) -> None:
    if not np.isfinite(states).all():
        raise FloatingPointError(
            f"{int((~np.isfinite(states)).sum())} of the hidden states are not finite in {states.dtype}; set "
            "frozen_states to float32, or look at the model's weights"
        )
