"""Cut off, damaged, swapped, of another run, not finite: nothing of it is taken for whole, and what is good is kept."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from tiny import micro

from icrm_lib import records
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model import checkpoints, samples
from icrm_lib.methods import method_settings
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.training.fit import train_reward_model

SETTINGS = RewardModelSettings(lora_rank=2, lora_alpha=4, epochs=2, batch_size=4, learning_rate=1e-2, save_steps=1)


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
    assert records.is_sealed(folder / "checkpoints/checkpoint-6", key, verify=True)


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
        samples._read_samples(path, {"n": 1})
    path.write_text(f"{HEAD}\n{LINE}\n")
    assert samples._read_samples(path, {"n": 1}) == {"[]": [("text", 1, True)]}


@pytest.mark.parametrize(
    "manifest", ["", "{}", '{"key": {}}', '{"key": {}, "filez": {}}', '{"key": {}, "files": []}', "[]"]
)
def test_a_damaged_manifest_is_no_manifest(tmp_path, manifest):
    records.seal(tmp_path, {})
    assert records.is_sealed(tmp_path, {}) and records.key_of(tmp_path) == {}
    (tmp_path / records.MANIFEST).write_text(manifest)
    assert not records.is_sealed(tmp_path, {})


def test_what_lies_in_an_artefacts_place_is_refused_before_the_work(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("mine")
    for name in ("link", "file"):
        with pytest.raises(FileExistsError, match="is in the way"), records.sealed_folder(tmp_path / name, {}):
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
