"""The same cells on a cluster, of which a machine is lost: the same records. Skips what is not installed."""

import json
import subprocess
import sys

import cluster_driver
import kill_driver
import pytest
from cluster_driver import CELLS
from tiny import micro_grid

from icrm_lib.lab.grid import run_grid


def comparable(folder):
    """Records without what differs between two runs: seconds."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        record["metrics"].pop("seconds")
        found[path.stem] = record
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_a_cluster_that_loses_a_machine_makes_the_records_of_this_one(engine, package, tmp_path):
    pytest.importorskip(package)
    root, folder = tmp_path / "root", tmp_path / engine
    root.mkdir()
    command = [sys.executable, cluster_driver.__file__, engine, str(folder)]
    environment = kill_driver.ENVIRONMENT | {"ICRM_ROOT": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=540)
    print(done.stdout, done.stderr, sep="\n")  # for who reads the run: pytest -s
    assert done.returncode == 0
    before, written, after = json.loads(done.stdout.splitlines()[-1])
    assert (before, after) == (2, 1) and 1 <= written < len(CELLS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ICRM_ROOT", str(root))
        run_grid(micro_grid(), CELLS, tuned={}, folder=tmp_path / "loky", workers=2)
    assert list(comparable(folder)) == sorted(cell.name for cell in CELLS)
    assert comparable(folder) == comparable(tmp_path / "loky")
