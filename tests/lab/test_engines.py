"""Where cells are computed: what is refused, how many at a time, what a lost worker and another run's lock do."""

import os

import pytest
from tiny import micro_grid

from icrm_lib import records
from icrm_lib.lab import cell as cell_module
from icrm_lib.lab import grid
from icrm_lib.lab.cell import cell_config
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.engines import Engine, Place, WorkerLost
from icrm_lib.lab.grid import run_grid

MICRO = micro_grid()
CELLS = [Cell("true_values", seed) for seed in range(4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "rey"}, "did you mean 'ray'"),
        ({"gpus": 1.5}, "cannot take 1.5 of a GPU"),
        ({"gpus": -0.5}, "cannot take -0.5 of a GPU"),
        ({"workers": -1}, "cannot have -1 workers"),
    ],
)
def test_what_no_engine_is_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Engine(**options)


@pytest.mark.parametrize(
    ("options", "slots", "backend"),
    [
        ({"workers": 0}, 1, "sequential"),
        ({"name": "ray", "workers": 0}, 1, "sequential"),
        ({"workers": 3}, 3, "loky"),
        ({"workers": 1}, 1, "sequential"),
        ({"workers": 8, "gpus": 0.3}, 3, "loky"),
        ({"workers": 2, "gpus": 0.25}, 2, "loky"),
        ({"workers": 8, "gpus": 1.0}, 1, "sequential"),
    ],
)
def test_so_many_cells_are_computed_at_a_time(options, slots, backend):
    place = Engine(**options).place()
    assert (place.slots, place.options["backend"]) == (slots, backend)


@pytest.fixture
def computed(monkeypatch, tmp_path):
    """What was computed, in order; nothing is trained or made for it."""
    names = []

    def fake(profile, cell, settings, purpose):
        names.append(cell.name)
        return {"config": cell_config(profile, cell, settings), "metrics": {}}

    monkeypatch.setattr(cell_module, "compute_cell", fake)
    monkeypatch.setattr(grid, "pack", lambda jobs, workers: grid.Luggage({}, []))
    return names


def test_a_lost_worker_costs_its_cells_a_second_run_and_no_other(computed, monkeypatch, tmp_path, caplog):
    class Failing(Place):
        def run(self, calls, function=None):
            for number, found in enumerate(super().run(calls)):
                yield found
                if number == 1:
                    raise WorkerLost("the machine is gone")

    monkeypatch.setattr(Engine, "place", lambda self: Failing(1, {"backend": "sequential"}))
    paths = run_grid(MICRO, CELLS, tuned={}, folder=tmp_path)
    assert all(path.exists() for path in paths.values()) and sorted(computed) == sorted(c.name for c in CELLS)
    assert caplog.text.count("a worker was lost") == 2


def test_a_cell_that_ends_every_worker_ends_the_grid_after_some_tries(computed, monkeypatch, tmp_path):
    def place(self):
        computed.append("started")
        return Place(1, {"backend": "sequential"}, work=_end)

    monkeypatch.setattr(Engine, "place", place)
    with pytest.raises(WorkerLost, match="ended"):
        run_grid(MICRO, CELLS, tuned={}, folder=tmp_path)
    assert computed.count("started") == 1 + grid.TRIES
    lock = records.claim(tmp_path / f"{CELLS[0].name}.json")  # none is held
    lock.release()


def _end(job):
    raise SystemError("ended")


def test_a_cell_that_another_run_has_is_left_to_it(computed, monkeypatch, tmp_path):
    config = cell_config(MICRO, CELLS[1], grid.settings_of(MICRO, CELLS[1], {}))
    theirs = tmp_path / f"{CELLS[1].name}.json"
    lock, real = records.claim(theirs), records.locked

    def other_run_ends(path):
        records.write_json(theirs, {"config": config, "metrics": {"of": "the other"}})
        lock.release()
        return real(path)

    monkeypatch.setattr(records, "locked", other_run_ends)
    run_grid(MICRO, CELLS, tuned={}, folder=tmp_path, workers=0)
    assert computed == [cell.name for cell in CELLS if cell != CELLS[1]]
    assert records.read_json(theirs)["metrics"] == {"of": "the other"}


def test_a_cell_that_another_run_gave_up_is_computed_here(computed, monkeypatch, tmp_path):
    lock, real = records.claim(tmp_path / f"{CELLS[0].name}.json"), records.locked
    monkeypatch.setattr(records, "locked", lambda path: (lock.release(), real(path))[1])
    run_grid(MICRO, CELLS, tuned={}, folder=tmp_path, workers=0)
    assert sorted(computed) == sorted(cell.name for cell in CELLS)


def test_an_error_in_what_is_to_be_computed_is_no_lost_worker():
    def calls():
        yield (0.0,)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        list(Engine(workers=2).place().run(calls(), _pid_after))


def test_results_come_as_they_are_finished_from_other_processes():
    found = list(Engine(workers=2).place().run([(0.4,), (0.0,)], _pid_after))
    assert len(found) == 2 and os.getpid() not in {pid for pid, _ in found}
    assert [threads for _, threads in found] == [1, 1]


def _pid_after(seconds):
    import time

    import torch

    time.sleep(seconds)
    return os.getpid(), torch.get_num_threads()
