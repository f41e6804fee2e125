"""No space, no permission: one message with the remedy, and nothing half-written."""

import errno
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import kill_driver
import pytest

from icrm_lib import records, runtime

FULL = """
import resource, sys
from pathlib import Path
import kill_driver
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a write beyond it fails, as on a full disk
kill_driver.JOBS[sys.argv[2]](Path(sys.argv[1]))
"""


@pytest.mark.parametrize("job, limit", [("reward_model", 20000), ("sampling", 3000)])
def test_a_full_disk_is_named_and_leaves_nothing_half_written(job, limit, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-c", FULL, str(folder), job, str(limit)]
    done = subprocess.run(command, env=kill_driver.ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no space left while writing" in done.stderr and "what is finished is kept" in done.stderr
    kill_driver.check_wholeness(folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".locks"]


def test_the_same_run_goes_on_when_there_is_space_again(tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    for path in (folder, whole):
        path.mkdir()
    command = [sys.executable, "-c", FULL, str(folder), "sampling", "3000"]
    assert subprocess.run(command, env=kill_driver.ENVIRONMENT, capture_output=True).returncode != 0
    begun = (folder / "samples.jsonl").read_bytes()
    kill_driver.sampling(folder)
    kill_driver.sampling(whole)
    assert (folder / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert (folder / "samples.jsonl").read_bytes().startswith(begun[: begun.rfind(b"\n") + 1]) and begun


AS_NOBODY = """
import os, sys
from icrm_lib import records, runtime
if os.geteuid() == 0:  # root may write anywhere
    os.setegid(65534)
    os.seteuid(65534)
"""
WRITE = AS_NOBODY + "records.write_json(sys.argv[1] + '/a/b.json', {})"
LOCK = AS_NOBODY + "with records.locked(sys.argv[1] + '/b.json'): pass"


@pytest.mark.parametrize("code", [WRITE, LOCK], ids=["write", "lock"])
def test_a_write_protected_folder_is_named(code):
    folder = Path(tempfile.mkdtemp(prefix="icrm-protected-"))
    try:
        folder.chmod(0o555)
        command = [sys.executable, "-c", code, str(folder)]
        done = subprocess.run(
            command, env=kill_driver.ENVIRONMENT, capture_output=True, text=True, cwd=runtime.project_root()
        )
        assert "make its folder writable, or choose another" in done.stderr, done.stderr[-2000:]
        assert not list(folder.iterdir())
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_another_files_fault_is_not_blamed_on_the_folder(tmp_path):
    with pytest.raises(PermissionError, match="^.Errno 13. elsewhere"), records.explained(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "elsewhere", "/somewhere/else.jsonl")
