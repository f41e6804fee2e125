"""The generator's answers on disk: computed at most once, window by window, never stale, cut or damaged."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm

from icrm_lib import records, runtime
from icrm_lib.generator.ask import SIBLINGS, Scorer
from icrm_lib.language_model.checkpoints import PAIRS, data_fingerprint

logger = logging.getLogger(__name__)

CACHE_FILE, WINDOW_FILE = "logprobs.arrow", "window.arrow"
CACHE_TYPES = ("float32", "float16")
WINDOW = 1024  # pairs sorted by length and scored together; bounds the memory of a pass over any number of pairs


def columns(statistic: str = "logprobs") -> tuple[str, ...]:
    """Return the names of the columns that hold a statistic, chosen before rejected: one list a response.

    A list has one entry a token; for `SIBLINGS` there are two pairs of columns, of ids and of log-probabilities, and an
    entry is a list itself.
    """
    parts = ("sibling_ids", "sibling_logprobs") if statistic == SIBLINGS else (statistic,)
    return tuple(f"{side}_{part}" for part in parts for side in ("chosen", "rejected"))


def cached_logprobs(
    dataset: Dataset,
    make_scorer: Callable[[], Scorer],
    folder: Path,
    key: dict,
    *,
    statistic: str = "logprobs",
    cache_type: str = "float32",
) -> Dataset:
    """Return `dataset` with the generator's log-probabilities of its response tokens, computed at most once.

    The values lie in a memory-mapped Arrow file: training reads them row by row and holds nothing. A cache made
    from another generator, other data or other settings, a truncated one and a damaged one are detected and remade.
    A pass that was cut off goes on with the window of pairs it was at.

    Args:
        dataset: `preferences.tokenize_pairs` output: `chosen_ids`, `rejected_ids`, `prompt_length`.
        make_scorer: called only when the values must be computed (so the generator is not even loaded otherwise).
        folder: where caches lie; each in a folder of its own, named by what it depends on.
        key: what the values depend on beside the data: generator, tokenizer, settings (JSON-able).
        statistic: which of `STATISTICS`, or `SIBLINGS`, the scorer computes.
        cache_type: "float32", or "float16": 2 bytes a token, at a relative error of the logarithm below 0.0005.

    Returns:
        the dataset with the columns `columns(statistic)`, e.g. `chosen_logprobs` and `rejected_logprobs`: lists of
        `cache_type` (ids int32), one entry a response token (the closing token included).
    """
    if cache_type not in CACHE_TYPES:
        raise ValueError(f"unknown cache_type {cache_type!r}; choose one of {', '.join(CACHE_TYPES)}")
    key = {**key, "data": data_fingerprint(dataset), "rows": len(dataset), "statistic": statistic, "type": cache_type}
    folder = Path(folder) / f"logprobs-{records.fingerprint(key)}"  # two splits or generators never meet
    if not records.is_sealed(folder, key, verify=True):
        with records.locked(folder):
            if not records.is_sealed(folder, key, verify=True):  # nobody has made it while this run waited
                _make_cache(dataset, make_scorer, folder, key, _schema(statistic, cache_type))
    shutil.rmtree(_parts(folder), ignore_errors=True)
    values = Dataset.from_file(str(folder / CACHE_FILE))
    kept = dataset.remove_columns([name for name in columns(statistic) if name in dataset.column_names])
    return concatenate_datasets([kept, values], axis=1)


def _schema(statistic: str, cache_type: str) -> pa.Schema:
    value = pa.list_(pa.from_numpy_dtype(cache_type))
    if statistic != SIBLINGS:
        return pa.schema(dict.fromkeys(columns(statistic), value))
    types = [pa.list_(pa.list_(pa.int32()))] * 2 + [pa.list_(value)] * 2
    return pa.schema(list(zip(columns(statistic), types, strict=True)))


def _make_cache(dataset, make_scorer, folder: Path, key: dict, schema: pa.Schema) -> None:
    if folder.exists():
        logger.warning("%s is truncated or damaged; making it again", runtime.display_path(folder))
    windows = _windows(dataset, make_scorer, _parts(folder), key, schema)
    with records.sealed_folder(folder, key) as temporary, _writer(temporary / CACHE_FILE, schema) as writer:
        for window in windows:
            writer.write_table(pa.ipc.open_stream((window / WINDOW_FILE).read_bytes()).read_all())


def _windows(dataset, make_scorer, parts: Path, key: dict, schema: pa.Schema) -> list[Path]:
    """Make one sealed folder a window of pairs; those that a pass before this one has finished are kept."""
    scorer = None
    windows = [parts / f"{number:06d}" for number in range(-(-len(dataset) // WINDOW))]
    for number, window in enumerate(tqdm(windows, desc="generator", disable=not runtime.watched())):
        place = {**key, "window": number}
        if records.is_sealed(window, place, verify=True):
            continue
        scorer = scorer or make_scorer()
        rows = dataset.select_columns(list(PAIRS))[number * WINDOW : (number + 1) * WINDOW]
        asked = list(zip(rows["chosen_ids"] + rows["rejected_ids"], rows["prompt_length"] * 2, strict=True))
        values = scorer(asked)
        parts = list(zip(*values, strict=True)) if key["statistic"] == SIBLINGS else [values]
        for part in parts:
            _check_values(part, asked)
        *ids, values = parts
        if key["type"] == "float16":
            least = np.finfo(np.float16).min  # a weight of 0 stays finite
            values = [np.maximum(value, least).astype(np.float16) for value in values]
        pairs = len(rows["prompt_length"])
        sides = [side for part in (*ids, values) for side in (part[:pairs], part[pairs:])]
        arrays = [
            pa.array([value if value.ndim == 1 else list(value) for value in side], type=field.type)
            for side, field in zip(sides, schema, strict=True)
        ]
        with records.sealed_folder(window, place) as temporary, _writer(temporary / WINDOW_FILE, schema) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    return windows


def _parts(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.parts")


@contextmanager
def _writer(file: Path, schema: pa.Schema) -> Iterator[pa.RecordBatchStreamWriter]:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        yield writer


def _check_values(values: list[np.ndarray], asked: list[tuple[list[int], int]]) -> None:
    for value, (ids, start) in zip(values, asked, strict=True):
        if len(value) != len(ids) - start or not np.isfinite(value).all():
            raise FloatingPointError(
                f"the generator gave {len(value)} values, {int(np.isfinite(value).sum())} of them finite, for a "
                f"response of {len(ids) - start} tokens; look at its training log, and fit it at a lower learning rate"
            )
