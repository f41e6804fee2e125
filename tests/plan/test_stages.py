"""What a plan knows of devices, data, models and files."""

from dataclasses import replace

import pytest
from huggingface_hub import constants, scan_cache_dir
from transformers import LlamaConfig

from icrm_lib.plan import files
from icrm_lib.plan.files import expected_data
from icrm_lib.plan.machine import DEVICES, model_config
from icrm_lib.plan.stages import find_stages
from icrm_lib.plan.text import file_line
from icrm_lib.profiles import Profile, load_profile


def test_room_is_left_for_the_allocator():
    assert [DEVICES["24"].fits(peak) for peak in (20.0, 22.5, 23.5)] == ["yes", "barely", "no"]


def test_hours_are_those_of_products_or_of_reads():
    card = DEVICES["80"]
    assert card.hours(flops=0.35 * 312e12 * 3600) == pytest.approx(1)
    assert card.hours(flops=1.0, reads=0.3 * 2039e9 * 7200) == pytest.approx(2)


def test_pairs_follow_the_stride():
    pairs = [expected_data(load_profile(name))["pairs"] for name in ("gemma-2b-40k", "gemma-2b-400k")]
    assert pairs == [42_400, 424_000]


def test_tokens_unknown_are_an_upper_bound():
    profile = load_profile("gemma-2b-40k")
    own = replace(profile, data=replace(profile.data, preferences="own.jsonl", expected_tokens=0, train_pairs=100))
    data = expected_data(own)
    assert (data["pairs"], data["tokens"]) == (100, 2048)
    assert data["pairs_are"] == "at most" and data["tokens_are"].startswith("at most")


def stages_of(profile, method="icrm"):
    return {stage["stage"]: stage for stage in find_stages(profile, method, DEVICES["80"], expected_data(profile))}


def test_frozen_layers_are_a_stage_of_their_own_and_cheaper_after_it():
    own = load_profile("smollm2-135m")
    whole = replace(own, reward_model=replace(own.reward_model, frozen_layers=0))
    frozen, fitted = (replace(own, generator=replace(own.generator, kind=kind)) for kind in ("base", "fitted"))
    assert list(stages_of(frozen)) == ["lower layers", "reward model"]
    assert list(stages_of(frozen, "bt")) == ["lower layers", "reward model"]
    assert list(stages_of(whole)) == ["generator pass", "reward model"]
    assert list(stages_of(fitted)) == ["lower layers", "generator fit", "generator pass", "reward model"]
    costs = [stages_of(profile)["reward model"] for profile in (frozen, whole)]
    assert costs[0]["flops"] < 0.5 * costs[1]["flops"] and costs[0]["trainable"] < costs[1]["trainable"]
    assert stages_of(frozen)["lower layers"]["flops"] > stages_of(fitted)["lower layers"]["flops"]  # the vocabulary
    with pytest.raises(ValueError, match="frozen_layers is 30, and smollm2 has 30 layers"):
        stages_of(replace(own, reward_model=replace(own.reward_model, frozen_layers=30)))


def test_an_unknown_model_needs_its_configuration():
    with pytest.raises(ValueError, match="no configuration of 'somebody/unheard-of' .* run `hf download"):
        model_config("somebody/unheard-of")


def test_a_directory_is_read(tmp_path):
    LlamaConfig(num_hidden_layers=3).save_pretrained(tmp_path)
    assert model_config(str(tmp_path)).num_hidden_layers == 3
    with pytest.raises(ValueError, match="no model in the directory"):
        (tmp_path / "empty").mkdir()
        model_config(str(tmp_path / "empty"))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache that holds the configuration of one model, and weights of another."""
    for name, file in (("known", "config.json"), ("whole", "model.safetensors")):
        folder = tmp_path / f"models--somebody--{name}"
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        (folder / "blobs").mkdir()
        (folder / "blobs" / "1").write_bytes(b"0" * 1000)
        (folder / "snapshots" / ("0" * 40) / file).symlink_to(folder / "blobs" / "1")
    monkeypatch.setattr(files, "scan_cache_dir", lambda: scan_cache_dir(tmp_path))


def test_what_is_cached_and_what_is_to_download(hub_cache, monkeypatch):
    asked = []
    monkeypatch.setattr(files, "_published_size", lambda name, kind: asked.append(name) or 3000)
    whole = {"name": "somebody/whole", "kind": "model", "here": True, "bytes": 1000, "exact": True}
    assert files.hub_file("somebody/whole", "model", 2000) == whole
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = files.hub_file("somebody/known", "model", 2000)
    assert (offline["here"], offline["bytes"], offline["exact"], asked) == (False, 2000, False, [])
    assert file_line(offline).endswith("to download, about 0 MiB")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    online = files.hub_file("somebody/known", "model", 2000)
    assert (online["here"], online["bytes"], online["exact"]) == (False, 3000, True)


def test_artefacts_are_counted_by_noun(tmp_path, monkeypatch):
    for name in ("generator-0123456789abcdef", "reward_model-01", "reward_model-02", "samples-03.jsonl"):
        (tmp_path / "runs" / "smoke" / "artefacts" / name).mkdir(parents=True)
    monkeypatch.setattr(files.runtime, "project_root", lambda: tmp_path)
    assert files.artefacts(Profile("smoke")) == {"generator": 1, "reward_model": 2, "samples": 1}
    assert files.artefacts(Profile("lab")) == {}
