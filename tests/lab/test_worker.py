"""A worker that shares no disk with the driver: it makes nothing that came along, and says when its code is another."""

import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import kill_driver
import numpy as np
import pytest
from tiny import micro_grid

from icrm_lib import records, runtime
from icrm_lib.lab import worker
from icrm_lib.lab.artefacts import machine
from icrm_lib.lab.cell import code, compute_cell
from icrm_lib.lab.cells import WEIGHTS, Cell
from icrm_lib.lab.engines import Place
from icrm_lib.lab.inputs import settings_of
from icrm_lib.lab.luggage import pack
from icrm_lib.lab.worker import Job, archive, unpack, work

MICRO = micro_grid()
CELLS = [Cell("bt", 0), Cell("icrm", 0, generator="small"), Cell("icrm_entropy", 0), Cell(WEIGHTS, 0, "exact")]
pytestmark = pytest.mark.usefixtures("own_root")


def job(cell, **changes):
    made = Job(MICRO, cell, settings_of(MICRO, cell, {}), "evidence", code(), machine())
    return replace(made, **changes)


# In a folder that is in no project, on a machine whose own artefacts would be others, with makers that refuse.
ELSEWHERE = """
import json, pickle, sys
from icrm_lib.lab.worker import work_elsewhere
from icrm_lib.lab import artefacts, models
def refuse(*given, **options):
    raise AssertionError("made again")
models.train_language_model = models.fit_generator = models.model_scorer = refuse
artefacts.machine = lambda: {"versions": {}, "device": "another"}
found = [work_elsewhere(*call) for call in pickle.load(open(sys.argv[1], "rb"))]
print(json.dumps([[cell.name, found if isinstance(found, dict) else repr(found)] for cell, found in found]))
"""


def test_a_worker_without_the_drivers_disk_makes_nothing_again_and_records_the_same(tmp_path):
    jobs = [job(cell) for cell in CELLS]
    place = Place(1, {"backend": "sequential"}, send=lambda packed: packed)
    luggage = pack(jobs, 1)
    calls = tmp_path / "calls"
    calls.write_bytes(pickle.dumps(list(luggage.calls(jobs, place))))
    command = [sys.executable, "-c", ELSEWHERE, str(calls)]
    environment = kill_driver.ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for cell, (name, record) in zip(CELLS, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert isinstance(record, dict), record
        here = json.loads(json.dumps(compute_cell(MICRO, cell, settings_of(MICRO, cell, {}))))
        for found in (record, here):
            found["metrics"].pop("seconds", None)
            found["environment"].pop("commit"), found["environment"].pop("threads")
        assert name == cell.name and record == here
        assert record["code"] == code() and record["environment"]["processor"] == runtime.processor_name()


def test_each_cell_gets_what_it_reads_and_no_more():
    jobs = [job(cell) for cell in (*CELLS, Cell("icrm", 1))]
    sent = []
    place = Place(1, {"backend": "sequential"}, send=lambda packed: sent.append(packed) or len(sent))
    calls = list(pack(jobs, 1).calls(jobs, place))
    nouns = [sorted(os.path.basename(name).split("-")[0] for name in call[0].names) for call in calls]
    assert nouns == [
        ["base_model"],
        ["base_model", "base_model", "generator", "logprobs"],  # the small one, too
        ["base_model", "generator", "logprobs"],
        ["base_model", "logprobs"],
        ["base_model", "generator", "logprobs"],
    ]
    assert len(sent) == len({name for call in calls for name in call[0].names})  # each is packed once
    assert all(len(call) == 1 + len(call[0].names) for call in calls)


def test_other_code_than_the_drivers_is_refused_and_no_error_of_a_cell_ends_a_worker():
    cell, found = work(job(CELLS[0], code="another"))
    assert cell == CELLS[0] and isinstance(found, RuntimeError)
    assert "other code of icrm_lib than the driver" in str(found) and "install the same commit" in str(found)


class Unsendable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def test_an_error_that_cannot_be_sent_is_told(monkeypatch):
    def fail(*given):
        raise Unsendable("one", "another")

    monkeypatch.setattr("icrm_lib.lab.cell.compute_cell", fail)
    _, found = work(job(CELLS[0]))
    assert isinstance(found, RuntimeError) and str(found) == "Unsendable: one and another"


def test_what_is_archived_is_unpacked_as_it_was_and_only_once(tmp_path):
    folder = tmp_path / "artefact"
    with records.sealed_folder(folder, {"key": 1}) as made:
        (made / "inner").mkdir()
        (made / "inner" / "a.bin").write_bytes(bytes(range(256)))
    (folder / ".locks").mkdir()
    packed = archive(folder)
    assert packed.dtype == np.uint8
    there = tmp_path / "there" / "artefact"
    unpack(packed, there)
    assert records.is_sealed(there, {"key": 1}, verify=True) and not (there / ".locks").exists()
    (there / "inner" / "a.bin").write_bytes(b"kept")
    unpack(packed, there)
    assert (there / "inner" / "a.bin").read_bytes() == b"kept"
    file = tmp_path / "samples.jsonl"
    file.write_text("{}\n")
    unpack(archive(file), tmp_path / "there" / file.name)
    assert (tmp_path / "there" / file.name).read_text() == "{}\n"


def test_folders_of_dead_workers_are_removed_and_those_of_living_ones_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(worker.tempfile, "tempdir", str(tmp_path))
    dead, living, new = (tmp_path / f"{worker.ROOT}{name}" for name in ("dead", "living", "new"))
    for folder in (dead, living, new):
        folder.mkdir()
    lock = records.claim(living / worker.ALIVE)
    for folder in (dead, living):
        os.utime(folder, (0, 0))
    worker._own_root.cache_clear()
    own = worker._own_root()
    worker._own_root.cache_clear()
    assert sorted(tmp_path.iterdir()) == sorted([living, new, own])
    lock.release()
