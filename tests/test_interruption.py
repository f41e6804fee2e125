"""Killed, cut off, damaged, out of space, two at once: nothing half-written is taken for whole, and nothing is lost."""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import kill_driver
import pytest
from test_workspace import MICRO

from icrm_lib import checkpoints, records, sampling
from icrm_lib.methods import method_settings, train_reward_model
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.workspace import Workspace

HERE = Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join((str(HERE.parent), str(HERE))),
    "OMP_NUM_THREADS": "1",
    "ICRM_UNATTENDED": "1",
}
SETTINGS = RewardModelSettings(lora_rank=2, lora_alpha=4, epochs=2, batch_size=4, learning_rate=1e-2, save_steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("job", kill_driver.JOBS)
def test_twenty_kills_leave_what_an_unbroken_run_leaves(job, tmp_path):
    command = [sys.executable, str(HERE / "kill_driver.py"), job, str(tmp_path), "20"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=HERE.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 20 and result["chains"] >= 5
    assert result["files"] == {"reward_model": 24, "sampling": 1, "grid": 2}[job]


# Two at once -----------------------------------------------------------------------------------------------------


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
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
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


# Checkpoints ---------------------------------------------------------------------------------------------------------


def train(base_model, tokenizer, rows, folder, **changes):
    settings = method_settings(replace(SETTINGS, **changes), "icrm")
    return train_reward_model(
        base_model, tokenizer, rows, settings, folder=folder / "log", seed=0, checkpoints=folder / "checkpoints"
    )


@pytest.fixture
def left(base_model, tokenizer, pairs_with_logprobs, tmp_path, monkeypatch):
    """The folder of a finished training of six steps with its last two checkpoints, and the rows."""
    monkeypatch.setattr(checkpoints, "LOGGING_STEPS", 1)
    rows = pairs_with_logprobs.select(range(12))
    trainer = train(base_model, tokenizer, rows, tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-5",
        "checkpoint-6",
    ]
    return tmp_path, rows, trainer.state.log_history[-2]


def damage(path, how):
    file = path / "adapter_model.safetensors"
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "one bit":
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(bytes(data))
    elif how == "a file is missing":
        (path / "optimizer.pt").unlink()
    elif how == "no manifest":
        (path / records.MANIFEST).unlink()
    elif how == "swapped with another one":
        shutil.copy(path.with_name("checkpoint-5") / "optimizer.pt", path)
    else:
        (path / records.MANIFEST).write_text('{"key":')


@pytest.mark.parametrize(
    "how", ["truncated", "one bit", "a file is missing", "no manifest", "swapped with another one", "half a manifest"]
)
def test_a_damaged_checkpoint_is_not_resumed_from(left, how, base_model, tokenizer, caplog):
    folder, rows, last = left
    key = {"checkpoints": "checkpoints"}
    damage(folder / "checkpoints/checkpoint-6", how)
    again = train(base_model, tokenizer, rows, folder)
    assert "checkpoint-6 is half-written or damaged; going on without it" in caplog.text
    assert again.state.log_history[-2] == last  # the sixth step, computed again from the fifth
    assert records.is_whole(folder / "checkpoints/checkpoint-6", key, verify=True)


def test_a_checkpoint_of_another_training_is_refused_and_kept(left, base_model, tokenizer):
    folder, rows, _ = left
    shutil.copytree(folder / "checkpoints/checkpoint-6", folder / "other/checkpoints-of-mine/checkpoint-6")
    with pytest.raises(ValueError, match="is a checkpoint of another training; move it away"):
        checkpoints.newest_checkpoint(folder / "other/checkpoints-of-mine", {"checkpoints": "checkpoints-of-mine"})
    assert (folder / "other/checkpoints-of-mine/checkpoint-6/optimizer.pt").is_file()


def test_a_finished_artefact_with_one_bit_changed_is_made_again(tmp_path, caplog):
    profile = replace(MICRO, name="bits")
    path = Workspace(profile, folder=tmp_path).reward_model_folder("bt")
    file = path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    assert Workspace(profile, folder=tmp_path).reward_model_folder("bt") == path
    assert file.read_bytes() == whole


def test_a_damaged_line_of_a_sample_file_is_named(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"settings": {}}\n{"prompt": [], "resp\n{"prompt": [], "responses": []}\n')
    with pytest.raises(ValueError, match=r"samples.jsonl:2 is damaged .*; delete the line, its prompt is then drawn"):
        sampling._read_samples(path, {})


# No space, no permission ---------------------------------------------------------------------------------------------


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
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no space left while writing" in done.stderr and "what is finished is kept" in done.stderr
    kill_driver.check_wholeness(folder)
    assert not [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".locks"]


def test_the_same_run_goes_on_when_there_is_space_again(tmp_path):
    folder, whole = tmp_path / "run", tmp_path / "whole"
    for path in (folder, whole):
        path.mkdir()
    command = [sys.executable, "-c", FULL, str(folder), "sampling", "3000"]
    assert subprocess.run(command, env=ENVIRONMENT, capture_output=True).returncode != 0
    begun = (folder / "samples.jsonl").read_bytes()
    kill_driver.sampling(folder)
    kill_driver.sampling(whole)
    assert (folder / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert (folder / "samples.jsonl").read_bytes().startswith(begun[: begun.rfind(b"\n") + 1]) and begun


AS_NOBODY = """
import os, sys
from icrm_lib import records
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
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=HERE.parent)
        assert "make its folder writable, or choose another" in done.stderr, done.stderr[-2000:]
        assert not list(folder.iterdir())
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_another_files_fault_is_not_blamed_on_the_folder(tmp_path):
    with pytest.raises(PermissionError, match="^.Errno 13. elsewhere"), records.explained(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "elsewhere", "/somewhere/else.jsonl")
