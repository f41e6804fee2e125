"""Folders with the published files, and an address that stands in for theirs."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

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


@pytest.fixture
def served(tmp_path):
    """Address of the test's folder, over HTTP as the published ones are."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
