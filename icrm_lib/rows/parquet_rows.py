"""Rows of a Parquet file; a row that Python cannot hold is a fault of this row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from icrm_lib.rows.bad_row import BadRow


def read_parquet(path: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Yield (number from 1, row); raises ValueError for a file that cannot be trusted as a whole."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := sorted({column for column in names if names.count(column) > 1}):
                raise ValueError(f"{name} has two columns {twice[0]!r}; write the file again with one of them")
            rows = (row for batch in file.iter_batches(batch_size=1024) for row in _batch_rows(batch))
            yield from enumerate(rows, 1)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{name} is no whole Parquet file: {error}; download or write it again") from error


def _batch_rows(batch: pyarrow.RecordBatch) -> list[Any]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError):  # of one of its rows; find out which
        return [_batch_row(batch.slice(i, 1)) for i in range(len(batch))]


def _batch_row(row: pyarrow.RecordBatch) -> Any:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        return BadRow("not UTF-8", f"{byte} of a text; write the file again, with texts in UTF-8")
    except (ValueError, OverflowError) as error:  # a date of the year 300,000, say
        return BadRow("unreadable value", f"{error}; mend or drop its column")
