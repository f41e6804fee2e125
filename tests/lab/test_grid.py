"""The grid goes on where it was: nothing finished is run again, nothing that failed stops the rest."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import micro_grid

import icrm_lib
from icrm_lib import records
from icrm_lib.lab import cell as cell_module
from icrm_lib.lab.cell import cells_folder, is_finished
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.grid import run_grid

MICRO = micro_grid()
pytestmark = pytest.mark.usefixtures("own_root")


def test_a_finished_cell_is_not_run_again_and_a_changed_or_damaged_one_is(monkeypatch):
    cells = [Cell("bt", 7), Cell("frozen_mlp", 7)]
    paths = run_grid(MICRO, cells, tuned={}, workers=0)
    ran = []
    real = cell_module.compute_cell
    monkeypatch.setattr(cell_module, "compute_cell", lambda p, c, *rest: ran.append(c.name) or real(p, c, *rest))
    before = paths[cells[0]].read_bytes()
    assert run_grid(MICRO, cells, tuned={}, workers=0) == paths and ran == []
    paths[cells[0]].write_text('{"config": ')
    run_grid(MICRO, cells, tuned={"frozen_mlp": {"learning_rate": 0.01}}, workers=0)
    assert ran == [cell.name for cell in cells]
    again = records.read_json(paths[cells[0]])["metrics"]
    again.pop("seconds")
    first = json.loads(before)["metrics"]
    first.pop("seconds")
    assert again == first  # made again, it is the same
    assert not is_finished(paths[cells[0]].with_name("nothing.json"), {})


def test_one_failing_cell_does_not_stop_the_others():
    cells = [Cell("outcome", 8, changes=(("positive_weight", 0.1),)), Cell("bt", 8)]
    with pytest.raises(ValueError, match="go with loss='bradley_terry'"):
        run_grid(MICRO, cells, tuned={}, workers=0)
    assert (cells_folder(MICRO) / "bt-seed_8.json").exists()


def test_settings_out_of_range_are_refused_before_any_cell_runs():
    cells = [Cell("icrm", 9, changes=(("consistency_weight", 2.0),)), Cell("bt", 9)]
    with pytest.raises(ValueError, match="consistency_weight"):
        run_grid(MICRO, cells, tuned={}, workers=0)
    assert not (cells_folder(MICRO) / "bt-seed_9.json").exists()


DRIVER = """
from tiny import micro_grid
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.grid import run_grid
if __name__ == "__main__":
    run_grid(micro_grid(), [Cell("bt", seed) for seed in range(4)], tuned={}, workers=2)
"""


def test_a_killed_grid_goes_on_where_it_was_and_workers_change_nothing(tmp_path):
    source = Path(icrm_lib.__file__).parents[1]
    for name in ("icrm_lib", "profiles"):
        shutil.copytree(source / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "pyproject.toml", tmp_path)
    shutil.copy(source / "tests" / "tiny.py", tmp_path)
    (tmp_path / "driver.py").write_text(DRIVER)
    env = os.environ | {"PYTHONPATH": str(tmp_path), "ICRM_UNATTENDED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "driver.py")]
    folder = tmp_path / "results" / "micro_grid" / "evidence"
    options = {"cwd": tmp_path, "env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = subprocess.Popen(command, start_new_session=True, **options)
    deadline = time.monotonic() + 240
    while not list(folder.glob("bt*.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("bt*.json")}
    subprocess.run(command, check=True, timeout=240, **options)
    assert sorted(path.name for path in folder.glob("*.json")) == [f"bt-seed_{seed}.json" for seed in range(4)]
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    cells = [Cell("bt", seed) for seed in range(4)]
    here = run_grid(MICRO, cells, tuned={}, workers=0)
    for cell in cells:
        there = records.read_json(folder / f"{cell.name}.json")["metrics"]
        ours = records.read_json(here[cell])["metrics"]
        assert there["accuracy"] == ours["accuracy"] and there["tokens"] == ours["tokens"]
