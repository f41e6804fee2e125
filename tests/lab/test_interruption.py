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
from tiny import micro

from icrm_lib import records
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model import checkpoints, sampling
from icrm_lib.methods import method_settings
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.training.fit import train_reward_model

TESTS = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join((str(TESTS.parent), str(TESTS))),
    "OMP_NUM_THREADS": "1",
    "ICRM_UNATTENDED": "1",
}
SETTINGS = RewardModelSettings(lora_rank=2, lora_alpha=4, epochs=2, batch_size=4, learning_rate=1e-2, save_steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("job", kill_driver.JOBS)
def test_twenty_kills_leave_what_an_unbroken_run_leaves(job, tmp_path):
    command = [sys.executable, str(TESTS / "kill_driver.py"), job, str(tmp_path), "20"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=TESTS.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["kills"] >= 20 and result["chains"] >= 5
    assert result["files"] >= {"reward_model": 24, "sampling": 1, "grid": 5}[job]


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


def train(base_model, tokenizer, rows, folder, seed=0, checkpoints=None, **changes):
    settings = method_settings(replace(SETTINGS, **changes), "icrm")
    options = {"folder": folder / "log", "seed": seed, "checkpoints": checkpoints or folder / "checkpoints"}
    return train_reward_model(base_model, tokenizer, rows, settings, **options)


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
    key = records.key_of(folder / "checkpoints/checkpoint-6")
    damage(folder / "checkpoints/checkpoint-6", how)
    again = train(base_model, tokenizer, rows, folder)
    assert "checkpoint-6 is half-written or damaged; going on without it" in caplog.text
    assert again.state.log_history[-2] == last  # the sixth step, computed again from the fifth
    assert records.is_whole(folder / "checkpoints/checkpoint-6", key, verify=True)


@pytest.mark.parametrize("other", ["settings", "seed", "data", "folder"])
def test_a_checkpoint_of_another_training_is_refused_and_kept(left, base_model, tokenizer, other):
    folder, rows, _ = left
    changes = {"learning_rate": 0.5} if other == "settings" else {}
    if other == "seed":
        changes["seed"] = 1
    if other == "data":
        rows = rows.select(range(11))
    if other == "folder":
        (folder / "checkpoints").rename(folder / "mine")
        changes["checkpoints"] = folder / "mine"
    with pytest.raises(ValueError, match="is a checkpoint of another training; move it away"):
        train(base_model, tokenizer, rows, folder, **changes)
    assert (changes.get("checkpoints", folder / "checkpoints") / "checkpoint-6/optimizer.pt").is_file()


def test_a_checkpoint_that_was_moved_away_is_left_alone(left, base_model, tokenizer):
    folder, rows, last = left
    (folder / "checkpoints/checkpoint-6").rename(folder / "checkpoints/checkpoint-6-old")
    assert train(base_model, tokenizer, rows, folder).state.log_history[-2] == last
    assert (folder / "checkpoints/checkpoint-6-old").is_dir()


def test_a_finished_artefact_with_one_bit_changed_is_made_again(tmp_path, caplog):
    profile = micro("bits")
    path = Workspace(profile, folder=tmp_path).reward_model_folder("bt")
    file = path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    assert Workspace(profile, folder=tmp_path).reward_model_folder("bt") == path
    assert file.read_bytes() == whole


HEAD = '{"settings": {"n": 1}}'
LINE = '{"prompt": [], "responses": [["text", 1, true]]}'


@pytest.mark.parametrize(
    ("lines", "number", "remedy"),
    [
        ([HEAD, '{"prompt": [], "resp', LINE], 2, "delete the line, its prompt is then drawn again"),
        ([HEAD, "{}"], 2, "delete the line"),
        ([HEAD, "null"], 2, "delete the line"),
        ([HEAD, LINE.replace("true", '"true"')], 2, "delete the line"),
        ([HEAD, LINE.replace('"text", ', "")], 2, "delete the line"),
        ([HEAD, '{"prompt": [], "responses": []}'], 2, "delete the line"),
        ([HEAD, LINE, LINE], 3, "delete the line"),
        (["[1]", LINE], 1, "delete the file"),
        (["{", LINE], 1, "delete the file"),
    ],
)
def test_a_damaged_line_of_a_sample_file_is_named(tmp_path, lines, number, remedy):
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=rf"samples.jsonl:{number} is damaged .*; {remedy}"):
        sampling._read_samples(path, {"n": 1})
    path.write_text(f"{HEAD}\n{LINE}\n")
    assert sampling._read_samples(path, {"n": 1}) == {"[]": [("text", 1, True)]}


@pytest.mark.parametrize(
    "manifest", ["", "{}", '{"key": {}}', '{"key": {}, "filez": {}}', '{"key": {}, "files": []}', "[]"]
)
def test_a_damaged_manifest_is_no_manifest(tmp_path, manifest):
    records.seal(tmp_path, {})
    assert records.is_whole(tmp_path, {}) and records.key_of(tmp_path) == {}
    (tmp_path / records.MANIFEST).write_text(manifest)
    assert not records.is_whole(tmp_path, {})


def test_what_lies_in_an_artefacts_place_is_refused_before_the_work(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(FileExistsError, match="is in the way"), records.whole_folder(tmp_path / name, {}):
            raise AssertionError("the work has begun")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_dead_processes_left_goes_and_what_living_ones_write_stays(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead, alive = (tmp_path / f".a.json.{pid}-0123abcd" for pid in (child.pid, os.getpid()))
    for path in (dead, alive):
        path.write_text("half")
    records.write_json(tmp_path / "a.json", {})
    assert not dead.exists() and alive.exists()


ORPHANS = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from icrm_lib.lab.workers import start_worker
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context, initializer=start_worker) as pool:
        print(*[future.result() for future in [pool.submit(os.getpid) for _ in range(8)]], flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
def test_workers_end_with_the_grid_that_started_them(tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(ORPHANS)
    grid = subprocess.Popen([sys.executable, str(script)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    workers = {int(pid) for pid in grid.stdout.readline().split()}
    assert workers and all(records._is_running(pid) for pid in workers)
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


# Numbers -------------------------------------------------------------------------------------------------------------


def test_a_run_that_went_wrong_seals_nothing_and_keeps_the_batch(tmp_path):
    workspace = Workspace(micro("wild", reward_model={"learning_rate": 1e38}), folder=tmp_path)
    with pytest.raises(FloatingPointError, match="not finite"):
        workspace.reward_model_folder("bt")
    assert not [path for path in tmp_path.glob("reward_model-*")]


def test_a_generator_that_went_wrong_is_not_asked(tmp_path):
    workspace = Workspace(micro("wild", generator={"learning_rate": 1e30, "epochs": 3.0}), folder=tmp_path)
    with pytest.raises(FloatingPointError, match="not finite"):
        workspace.with_logprobs("train")
    assert not [path for path in tmp_path.glob("logprobs-*") if path.is_dir()]
    assert not list(tmp_path.glob("generator-*"))


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
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, cwd=TESTS.parent)
        assert "make its folder writable, or choose another" in done.stderr, done.stderr[-2000:]
        assert not list(folder.iterdir())
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_another_files_fault_is_not_blamed_on_the_folder(tmp_path):
    with pytest.raises(PermissionError, match="^.Errno 13. elsewhere"), records.explained(tmp_path / "x"):
        raise PermissionError(errno.EACCES, "elsewhere", "/somewhere/else.jsonl")
