"""Profiles are read as written or refused with the nearest valid name."""

import dataclasses
import json

import pytest

from icrm_lib import profiles
from icrm_lib.profiles import Profile, build, known_profiles, load_profile
from icrm_lib.runtime import nearest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write `profiles/mine.yaml` in a project of its own, and load it."""
    monkeypatch.setattr(profiles, "profiles_folder", lambda: tmp_path)

    def write(text):
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        return load_profile("mine")

    return write


def test_there_is_a_smoke_profile():
    assert "smoke" in known_profiles()


@pytest.mark.parametrize("name", known_profiles())
def test_every_profile_loads_and_is_json(name):
    profile = load_profile(name)
    assert profile.name == name
    config = profile.config()
    assert json.loads(json.dumps(config, allow_nan=False)) == config
    assert set(config) == {item.name for item in dataclasses.fields(Profile)}
    assert build(Profile, config, "its own config") == profile


def test_values_are_read_and_the_rest_keeps_its_defaults(write):
    profile = write("data:\n  train_pairs: 7\nreward_model:\n  margin: true\n")
    assert profile.name == "mine" and profile.data.train_pairs == 7 and profile.reward_model.margin
    assert profile.reward_model.margin is True
    assert profile.generator == profiles.GeneratorSettings()
    assert write("# nothing but a comment\n") == Profile("mine")


@pytest.mark.parametrize(
    ("text", "value"), [("1e-5", 1e-5), ("1.0e-5", 1e-5), ("2", 2.0), ("'1e-5'", 1e-5), ("+0.5", 0.5)]
)
def test_a_float_may_be_written_as_people_write_it(write, text, value):
    rate = write(f"reward_model:\n  learning_rate: {text}\n").reward_model.learning_rate
    assert rate == value and type(rate) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:\n  train_pairs: true", "mine.yaml: data: train_pairs: expected int, got True"),
        ("data:\n  train_pairs: 3.5", "expected int, got 3.5"),
        ("data:\n  train_pairs: '7'", "expected int, got '7'"),
        ("data:\n  preferences: 7", "expected str, got 7"),
        ("data:\n  preferences:", "expected str, got None"),
        ("reward_model:\n  margin: 1", "expected bool, got 1"),
        ("reward_model:\n  margin: 'no'", "expected bool, got 'no'"),
        ("reward_model:\n  learning_rate: fast", "expected float, got 'fast'"),
        ("reward_model:\n  learning_rate: true", "expected float, got True"),
        ("reward_model:\n  learning_rate: .nan", "expected float, got nan"),
        ("reward_model:\n  learning_rate: 1e999", "expected float, got '1e999'"),
        ("reward_model:\n  learning_rate: !!binary MC4x", "expected float, got b'0.1'"),
        ("reward_model:\n  learning_rate: [1]", r"expected float, got \[1\]"),
        ("reward_model:\n  learning_rate:", "expected float, got None"),
        ("reward_model:", "reward_model: expected a mapping of settings, got None"),
        ("reward_model: 3", "reward_model: expected a mapping of settings, got 3"),
        ("- seeds", r"mine.yaml: expected a mapping of settings, got \['seeds'\]"),
        ("reward_modell:\n  margin: true", "unknown key 'reward_modell'; did you mean 'reward_model'"),
        ("data:\n  train_pair: 3", "unknown key 'train_pair'; did you mean 'train_pairs'"),
        ("data:\n  Max_Length: 3", "did you mean 'max_length'"),
        ("data:\n  3: 3", "unknown key 3; known: preferences, ignore, train_pairs"),
        ("reward_model:\n  head: mpl", "mine.yaml: reward_model: head: unknown value 'mpl'; did you mean 'mlp'"),
        ("reward_model:\n  quantization: 8bit", "unknown value '8bit'; did you mean '4bit'"),
        ("generator:\n  kind: exct", "mine.yaml: generator: kind: unknown value 'exct'; did you mean 'exact'"),
        ("generator:\n  engine: 3", "unknown value 3; known: transformers, vllm"),
        ("reward_model:\n  lora_rank: -1", "mine.yaml: reward_model: lora_rank: expected a number >= 1, got -1"),
        ("reward_model:\n  batch_size: 0", "expected a number >= 1, got 0"),
        ("reward_model:\n  consistency_weight: 1", "consistency_weight: expected a number < 1, got 1"),
        ("reward_model:\n  label_smoothing: 0.9", "expected a number < 0.5, got 0.9"),
        ("reward_model:\n  learning_rate: -0.5", "learning_rate: expected a number >= 0, got -0.5"),
        ("reward_model:\n  epochs: 0", "epochs: expected a number > 0, got 0"),
        ("generator:\n  top_p: 3", "top_p: expected a number <= 1, got 3"),
        ("data:\n  max_length: 0", "expected a number >= 1, got 0"),
        ("name: other", "named after its file; remove the key 'name'"),
    ],
)
def test_what_is_wrong_is_named_and_refused(write, text, message):
    with pytest.raises(ValueError, match=message):
        write(text)


@pytest.mark.parametrize("values", [[1], "data", None])
def test_what_is_no_mapping_is_refused(values):
    with pytest.raises(ValueError, match="here: expected a mapping of settings, got"):
        build(Profile, values, "here")


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="here: the key 'name' is missing"):
        build(Profile, {}, "here")


@pytest.mark.parametrize("name", ["smok", "Smoke", "SMOKE", "smoke.yaml"])
def test_an_unknown_profile_names_the_nearest(name):
    with pytest.raises(ValueError, match="unknown profile .* did you mean 'smoke'"):
        load_profile(name)


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("seed", ["PROFILE", "SEED"], "did you mean 'SEED'?"),
        ("PROFLE", ["PROFILE", "SEED"], "did you mean 'PROFILE'?"),
        ("Lora_Ranks", ["lora_rank", "lora_alpha"], "did you mean 'lora_rank'?"),
        ("STRASSE", ["Straße"], "did you mean 'Straße'?"),
        ("xyz", ["PROFILE", "SEED"], "known: PROFILE, SEED"),
        ("", ["a", "b"], "known: a, b"),
        ("a", [], "known: "),
    ],
)
def test_nearest_name_in_its_own_spelling(name, known, answer):
    assert nearest(name, known) == answer


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_profile("smoke").data.train_pairs = 3


@pytest.mark.parametrize(("section", "changes"), [("reward_model", {"head": "mpl"}), ("generator", {"kind": "exct"})])
def test_an_unknown_option_is_refused_wherever_settings_are_made(section, changes):
    with pytest.raises(ValueError, match="mpl|exct"):
        dataclasses.replace(getattr(load_profile("smoke"), section), **changes)
