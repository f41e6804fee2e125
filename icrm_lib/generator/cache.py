"""The generator's answers on disk: computed at most once, never stale, cut or damaged."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from icrm_lib import records, runtime
from icrm_lib.generator.ask import Scorer
from icrm_lib.generator.parts import write_parts
from icrm_lib.language_model.fingerprints import data_fingerprint

logger = logging.getLogger(__name__)

CACHE_FILE = "logprobs.arrow"


CACHE_TYPES = ("float32", "float16")


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
    files = write_parts(dataset, make_scorer, parts, schema, folder.name)
    with (
        records.sealed_folder(folder, key) as temporary,
        pa.OSFile(str(temporary / CACHE_FILE), "wb") as sink,
        pa.ipc.new_stream(sink, schema) as writer,
    ):
        for file in files:
            writer.write_table(pa.ipc.open_stream(file.read_bytes()).read_all().replace_schema_metadata(None))
