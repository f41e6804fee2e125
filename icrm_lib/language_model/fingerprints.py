"""What a training or a pass over data starts from, as hashes: the data and the model."""

from pathlib import Path
from weakref import WeakKeyDictionary

import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset
from huggingface_hub import try_to_load_from_cache

from icrm_lib import records

PAIRS = ("chosen_ids", "rejected_ids", "prompt_length")

_known: WeakKeyDictionary[Dataset, dict[tuple[str, ...], str]] = WeakKeyDictionary()  # a data set never changes


def data_fingerprint(dataset: Dataset, columns: tuple[str, ...] = PAIRS) -> str:
    """Return a hash of columns of integers or lists of integers, whatever transformations led to them.

    The Arrow buffers are hashed, through the indices of `select`, once a data set.
    """
    known = _known.setdefault(dataset, {})
    if columns not in known:
        known[columns] = _hash(dataset.select_columns(list(columns)), columns)
    return known[columns]


def _hash(dataset: Dataset, columns: tuple[str, ...]) -> str:
    digest = xxhash.xxh3_128()
    for window in dataset.with_format("arrow").iter(batch_size=1024):
        for name in columns:
            column = window[name].combine_chunks()
            parts = [column]
            if not pa.types.is_integer(column.type):  # lists, whose lengths say where each ends
                parts = [pc.list_value_length(column), column.flatten()]
            for part in parts:
                digest.update(part.cast(pa.int64()).to_numpy())
    return digest.hexdigest()


def model_fingerprint(path: str | Path) -> str:
    """Return a hash of a local model's weights and configuration, or of a hub id's name and downloaded commit.

    Args:
        path: local directory (every `.safetensors` file, `config.json` and tokenizer file counts) or hub id.
    """
    folder = Path(path)
    if not folder.is_dir():
        config = try_to_load_from_cache(str(path), "config.json")
        return f"hub:{path}@{Path(config).parent.name}" if isinstance(config, str) else f"hub:{path}"
    names = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".json", ".jinja"})
    return records.fingerprint({p.name: records.file_checksum(p) for p in names if p.name != records.MANIFEST})
