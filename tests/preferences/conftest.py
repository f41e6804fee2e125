"""Folders with the published files."""

import pytest
from published import TRAIN, UNIFIED, VAL, rated, write_lines, write_parquet, write_problems


@pytest.fixture
def unified(tmp_path):
    """Folder as `hub download` makes it: two shards, and another configuration beside `all`."""
    write_parquet(tmp_path / UNIFIED / "all" / "train-00000-of-00002.parquet", TRAIN[:5])
    write_parquet(tmp_path / UNIFIED / "all" / "train-00001-of-00002.parquet", TRAIN[5:])
    write_parquet(tmp_path / UNIFIED / "all" / "val-00000-of-00001.parquet", VAL)
    write_parquet(tmp_path / UNIFIED / "Nectar" / "train-00000-of-00001.parquet", [rated("not this", 1, 0)])
    write_lines(tmp_path / UNIFIED / ".cache" / "train-00000-of-00002.parquet.metadata", [])
    return tmp_path


@pytest.fixture
def problems(tmp_path):
    return write_problems(tmp_path)
