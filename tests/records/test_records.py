"""Files and folders under their final name are whole ones; keys and checksums notice every change."""

import json
import os
import subprocess

import pytest

from icrm_lib import records, runtime


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime, "project_root", lambda start=None: tmp_path)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# JSON files


def test_json_round_trip_makes_the_folder(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": "Grüße 😀"}
    path = records.write_json(tmp_path / "new" / "a.json", value)
    assert records.read_json(path) == value
    assert path.read_text(encoding="utf-8").endswith("}\n") and "Grüße 😀" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [{"a": object()}, {"a": float("nan")}, [float("inf")]])
def test_a_value_that_is_no_json_leaves_the_old_file_whole(tmp_path, value):
    path = records.write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises((TypeError, ValueError)):
        records.write_json(path, value)
    assert records.read_json(path) == {"old": 1} and names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_dies_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step, error):
    path = records.write_json(tmp_path / "a.json", {"old": 1})

    def die(*args):
        assert len(names(tmp_path)) == 2  # the new content lies beside the old
        raise error

    monkeypatch.setattr(os, step, die)
    with pytest.raises(error):
        records.write_json(path, {"new": 2})
    monkeypatch.undo()
    assert records.read_json(path) == {"old": 1} and names(tmp_path) == ["a.json"]


def test_a_damaged_json_file_is_named_with_the_remedy(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"a\.json is not valid JSON .*delete it"):
        records.read_json(tmp_path / "a.json")


# Fingerprints


def test_fingerprint_is_the_same_everywhere_and_whatever_the_order():
    value = {"b": [1, 2.5, None, True], "a": "Grüße 😀"}
    assert records.fingerprint(value) == "4d23e588fd6738c1"
    assert records.fingerprint(dict(reversed(value.items()))) == "4d23e588fd6738c1"


@pytest.mark.parametrize("other", [{"a": [1, 3]}, {"a": [2, 1]}, {"a": ["1", 2]}, {"A": [1, 2]}, {"a": [12]}, {}])
def test_fingerprint_of_another_value_differs(other):
    assert records.fingerprint(other) != records.fingerprint({"a": [1, 2]})


def test_checksum_covers_content_beyond_one_piece(tmp_path):
    size = (1 << 23) + 5
    for name, last in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(bytes(size) + last)
    a, b, c = (records.file_checksum(tmp_path / name) for name in "abc")
    assert a == b != c


# Folders

KEY = {"model": "m", "sizes": [1, 2], "rate": 0.5, "margin": None}


def build(path, key=KEY, content="weights"):
    with records.sealed_folder(path, key) as folder:
        assert folder.parent == path.parent and folder != path
        (folder / "model.bin").write_text(content)
        (folder / "deep").mkdir()
        (folder / "deep" / "log.txt").write_text("log")
    return path


def test_a_finished_folder_is_whole_and_holds_its_key(tmp_path):
    path = build(tmp_path / "new" / "model")
    assert records.is_sealed(path, KEY) and records.is_sealed(path, KEY, verify=True)
    assert names(path.parent) == ["model"]
    manifest = json.loads((path / records.MANIFEST).read_text())
    assert manifest["key"] == KEY and set(manifest["files"]) == {"model.bin", "deep/log.txt"}


def test_a_key_with_tuples_is_recognised_again(tmp_path):
    path = build(tmp_path / "model", key={"sizes": (1, 2)})
    assert records.is_sealed(path, {"sizes": (1, 2)}) and records.is_sealed(path, {"sizes": [1, 2]})


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_folder_whose_making_dies_leaves_nothing(tmp_path, error):
    with pytest.raises(error), records.sealed_folder(tmp_path / "model", KEY) as folder:
        (folder / "half.bin").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_the_old_folder_stays_until_the_new_one_is_whole(tmp_path):
    path = build(tmp_path / "model", content="old")
    with pytest.raises(RuntimeError), records.sealed_folder(path, KEY) as folder:
        (folder / "model.bin").write_text("half")
        raise RuntimeError
    assert records.is_sealed(path, KEY, verify=True) and (path / "model.bin").read_text() == "old"
    with records.sealed_folder(path, KEY) as folder:
        (folder / "other.bin").write_text("new")
        assert (path / "model.bin").read_text() == "old"
    assert names(path) == [records.MANIFEST, "other.bin"] and names(tmp_path) == ["model"]


def test_a_key_that_is_no_json_fails_before_anything_is_replaced(tmp_path):
    path = build(tmp_path / "model")
    with pytest.raises(TypeError):
        build(path, key={"model": object()})
    assert records.is_sealed(path, KEY, verify=True) and names(tmp_path) == ["model"]


def damage(path, fault):
    file = path / "deep" / "log.txt"
    match fault:
        case "no folder":
            path.rename(path.with_name("gone"))
        case "no manifest":
            (path / records.MANIFEST).unlink()
        case "half a manifest":
            text = (path / records.MANIFEST).read_text()
            (path / records.MANIFEST).write_text(text[: len(text) // 2])
        case "another manifest":
            (path / records.MANIFEST).write_text("[]")
        case "missing file":
            file.unlink()
        case "folder in a file's place":
            file.unlink()
            file.mkdir()
        case "other size":
            file.write_text("lo")
        case "other content":
            file.write_text("gol")


FAULTS = ["no folder", "no manifest", "half a manifest", "another manifest", "missing file"]


@pytest.mark.parametrize("fault", [*FAULTS, "folder in a file's place", "other size"])
def test_what_is_missing_or_cut_is_not_whole(tmp_path, fault):
    path = build(tmp_path / "model")
    damage(path, fault)
    assert not records.is_sealed(path, KEY)


def test_changed_content_of_the_same_size_is_found_when_asked_for(tmp_path):
    path = build(tmp_path / "model")
    damage(path, "other content")
    assert records.is_sealed(path, KEY) and not records.is_sealed(path, KEY, verify=True)


@pytest.mark.parametrize("change", [{"rate": 0.25}, {"sizes": [2, 1]}, {"margin": 0}, {"more": 1}])
def test_a_folder_of_another_key_is_not_whole(tmp_path, change):
    assert not records.is_sealed(build(tmp_path / "model"), KEY | change)


# Records


def test_record_round_trip_with_what_the_numbers_depend_on(root):
    config, metrics = {"seeds": 3}, {"accuracy": [0.5, 0.75]}
    path = records.write_record("reward_model", "smoke", config, metrics)
    assert path == root / "results" / "smoke" / "reward_model.json"
    record = records.read_json(path)
    assert record["config"] == config and record["metrics"] == metrics
    environment = record["environment"]
    assert environment["versions"] == runtime.versions() and environment["threads"] >= 1
    assert environment["commit"] == "unknown"  # this folder is no git repository
    assert set(environment) == {"versions", "device", "processor", "threads", "commit"} and environment["processor"]


def test_commit_is_the_repositorys(tmp_path, monkeypatch):
    calls = []

    class Done:
        stdout = "3778d72-dirty\n"

    monkeypatch.setattr(subprocess, "run", lambda command, **kwargs: calls.append(command) or Done())
    assert records.environment()["commit"] == "3778d72-dirty"
    assert str(runtime.project_root()) in calls[0]


def test_a_metric_that_is_not_a_number_is_never_stored(root):
    with pytest.raises(ValueError):
        records.write_record("reward_model", "smoke", {}, {"accuracy": float("nan")})
    assert not (root / "results/smoke/reward_model.json").exists()
