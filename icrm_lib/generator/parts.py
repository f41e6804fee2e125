"""A pass over the pairs, window by window: what a cut-off pass has finished stays."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset
from tqdm.auto import tqdm

from icrm_lib import records, runtime
from icrm_lib.generator.ask import Scorer

WINDOW = 1024  # pairs sorted by length and scored together; bounds the memory of a pass over any number of pairs


def write_parts(
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
