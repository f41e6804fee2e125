"""Killed, or two at once: nothing is lost, and what comes out is what an unbroken run makes."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import kill_driver
import pytest

from icrm_lib import records, runtime
from icrm_lib.records.files import is_running


@pytest.mark.slow
@pytest.mark.parametrize("job", kill_driver.JOBS)
def test_twenty_kills_leave_what_an_unbroken_run_leaves(job, tmp_path):
    command = [sys.executable, kill_driver.__file__, job, str(tmp_path), "20"]
    done = subprocess.run(
        command, env=kill_driver.ENVIRONMENT, capture_output=True, text=True, cwd=runtime.project_root()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 20 and result["chains"] >= 5
    assert result["files"] >= {"reward_model": 24, "sampling": 1, "grid": 5}[job]


TWO = """
import sys
from pathlib import Path
import kill_driver
folder, job = Path(sys.argv[1]), sys.argv[2]
children = [kill_driver.start(job, folder) for _ in range(2)]
kill_driver.finish(job, Path(sys.argv[3]))
import os
for child in children:
    assert os.waitpid(child, 0)[1] == 0
assert kill_driver.contents(folder) == kill_driver.contents(Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("job", kill_driver.JOBS)
def test_two_runs_in_one_folder_make_what_one_makes(job, tmp_path):
    command = [sys.executable, "-c", TWO, str(tmp_path / "two"), job, str(tmp_path / "one")]
    done = subprocess.run(command, env=kill_driver.ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "another run is writing" in done.stderr


def test_the_second_run_waits_and_says_so(tmp_path, caplog):
    order = []

    def second():
        with records.locked(tmp_path / "artefact"):
            order.append("second")

    with records.locked(tmp_path / "artefact"):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 20
        while "another run is writing artefact" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


ORPHANS = """
import os, time
from icrm_lib.lab.engines import Engine
def pid(seconds):
    time.sleep(seconds)
    return os.getpid()
if __name__ == "__main__":
    found = Engine(workers=2).place().run([(seconds,) for seconds in (1, 1, 60, 60)], pid)
    print(next(found), next(found), flush=True)
    time.sleep(60)
"""


def test_workers_end_with_the_grid_that_started_them(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(ORPHANS)
    grid = subprocess.Popen(
        [sys.executable, str(script)], env=kill_driver.ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    workers = {int(pid) for pid in grid.stdout.readline().split()}
    assert workers and all(is_running(pid) for pid in workers)
    grid.kill()
    grid.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "Z" not in state(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
