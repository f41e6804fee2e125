"""The generator's answers on disk: computed at most once, window by window, never stale, cut or damaged."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm

from icrm_lib import records, runtime
from icrm_lib.generator.ask import Scorer
from icrm_lib.language_model.checkpoints import data_fingerprint

logger = logging.getLogger(__name__)

CACHE_FILE = "logprobs.arrow"
CACHE_TYPES = ("float32", "float16")
WINDOW = 1024  # pairs sorted by length and scored together; bounds the memory of a pass over any number of pairs


def columns(statistic: str = "logprobs") -> tuple[str, str]:
    """Return the names of the two columns that hold a statistic: one list a response, one entry a token."""
    return f"chosen_{statistic}", f"rejected_{statistic}"


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
        statistic: which of `STATISTICS` the scorer computes.
        cache_type: "float32", or "float16": 2 bytes a token, at a relative error of the logarithm below 0.0005.

    Returns:
        the dataset with the columns `columns(statistic)`, e.g. `chosen_logprobs` and `rejected_logprobs`: lists of
        `cache_type`, one entry a response token (the closing token included).
    """
    if cache_type not in CACHE_TYPES:
        raise ValueError(f"unknown cache_type {cache_type!r}; choose one of {', '.join(CACHE_TYPES)}")
    key = {**key, "data": data_fingerprint(dataset), "rows": len(dataset), "statistic": statistic, "type": cache_type}
    folder = Path(folder) / f"logprobs-{records.fingerprint(key)}"  # two splits or generators never meet
    if not records.is_sealed(folder, key, verify=True):
        with records.locked(folder):
            if not records.is_sealed(folder, key, verify=True):  # nobody has made it while this run waited
                _make_cache(dataset, make_scorer, folder, key, columns(statistic), cache_type)
    shutil.rmtree(_parts(folder), ignore_errors=True)
    values = Dataset.from_file(str(folder / CACHE_FILE))
    kept = dataset.remove_columns([name for name in columns(statistic) if name in dataset.column_names])
    return concatenate_datasets([kept, values], axis=1)


def _parts(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.parts")


def _make_cache(dataset, make_scorer, folder: Path, key: dict, names: tuple[str, str], cache_type: str) -> None:
    if folder.exists():
        logger.warning("%s is truncated or damaged; making it again", runtime.display_path(folder))
    parts = _parts(folder)
    schema = pa.schema([(name, pa.list_(pa.from_numpy_dtype(cache_type))) for name in names])
    files = _write_parts(dataset, make_scorer, parts, schema, folder.name)
    with (
        records.sealed_folder(folder, key) as temporary,
        pa.OSFile(str(temporary / CACHE_FILE), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for file in files:
            writer.write_table(pa.ipc.open_stream(file.read_bytes()).read_all().replace_schema_metadata(None))


def _write_parts(
    dataset: Dataset, make_scorer: Callable[[], Scorer], parts: Path, schema: pa.Schema, cache: str
) -> list[Path]:
    """Write one file a window of pairs, named `<window>-<checksum>.arrow`; those that are there are kept.

    Each says inside which window of which cache it is, so that a renamed one is not taken for another.
    """
    done = {}
    for file in parts.glob("*.arrow"):
        window, _, checksum = file.stem.partition("-")
        if records.file_checksum(file) == checksum:
            with pa.OSFile(str(file)) as source:
                place = pa.ipc.open_stream(source).schema.metadata
            if place == _place(cache, int(window)):
                done[int(window)] = file
    scorer = None
    pairs_only = dataset.select_columns(["chosen_ids", "rejected_ids", "prompt_length"])
    for window in tqdm(range(-(-len(dataset) // WINDOW)), desc="generator", disable=not runtime.watched()):
        if window in done:
            continue
        scorer = scorer or make_scorer()
        rows = pairs_only[window * WINDOW : (window + 1) * WINDOW]
        pairs = len(rows["prompt_length"])
        asked = list(zip(rows["chosen_ids"] + rows["rejected_ids"], rows["prompt_length"] * 2, strict=True))
        values = scorer(asked)
        _check_values(values, asked)
        if schema.field(0).type.value_type == pa.float16():
            least = np.finfo(np.float16).min  # a weight of 0 stays finite
            values = [np.maximum(value, least).astype(np.float16) for value in values]
        arrays = [pa.array(part, type=schema.field(0).type) for part in (values[:pairs], values[pairs:])]
        sink = pa.BufferOutputStream()
        placed = schema.with_metadata(_place(cache, window))
        with pa.ipc.new_stream(sink, placed) as writer:
            writer.write_batch(pa.record_batch(arrays, schema=placed))
        data = sink.getvalue().to_pybytes()
        done[window] = parts / f"{window:06d}-{records.checksum(data)}.arrow"
        records.write_bytes(done[window], data)
    return [done[window] for window in sorted(done)]


def _place(cache: str, window: int) -> dict[bytes, bytes]:
    return {b"cache": cache.encode(), b"window": str(window).encode()}


def _check_values(values: list[np.ndarray], asked: list[tuple[list[int], int]]) -> None:
    for value, (ids, start) in zip(values, asked, strict=True):
        if len(value) != len(ids) - start or not np.isfinite(value).all():
            raise FloatingPointError(
                f"the generator gave {len(value)} values, {int(np.isfinite(value).sum())} of them finite, for a "
                f"response of {len(ids) - start} tokens; look at its training log, and fit it at a lower learning rate"
            )
