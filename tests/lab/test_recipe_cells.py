"""From the published files to a reward model."""

import json

import numpy as np
import pytest
from published import SKYWORK, UNIFIED, question, rated, skywork, write_lines, write_parquet
from tiny import TEXTS, micro, save_tiny

from icrm_lib.lab.workspace import Workspace
from icrm_lib.preferences.paper import SPLITS

SETTINGS = {
    "data": {"validation_pairs": 4, "test_pairs": 6, "max_length": 192, "stride": 2},
    "samples": {"n": 2, "temperature": 0.7, "top_p": 0.8, "max_new_tokens": 12},
    "reward_model": {"consistency_weight": 0.3, "sft_weight": 0.1},
}


def talk(number):
    return TEXTS[3 * number % len(TEXTS)] + f" ({number})"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """All three data sets in one folder."""
    folder = tmp_path_factory.mktemp("published")
    write_parquet(folder / UNIFIED / "all" / "train-0.parquet", [rated(talk(i), 1, 0) for i in range(60)])
    write_parquet(folder / UNIFIED / "all" / "val-0.parquet", [rated(talk(i), 0, 1) for i in range(100, 130)])
    write_parquet(folder / SKYWORK / "data" / "train-0.parquet", [skywork(i) for i in range(80)])
    write_lines(folder / "prm800k" / "phase2_train.jsonl", [question(i) for i in range(40)])
    return folder


@pytest.mark.parametrize(
    ("recipe", "family"), [("unified-feedback", "gemma"), ("skywork+unified-feedback", "llama"), ("prm800k", "qwen2")]
)
def test_a_recipe_goes_all_the_way_to_a_reward_model(recipe, family, published, tmp_path):
    save_tiny(family, tmp_path / "model")
    settings = SETTINGS | {"data": SETTINGS["data"] | {"preferences": recipe, "files": str(published)}}
    if recipe == "prm800k":
        asked = {"kind": "base", "model": str(tmp_path / "model"), "temperature": 0.7, "top_p": 0.8}
        settings |= {"generator": asked, "reward_model": SETTINGS["reward_model"] | {"loss": "outcome"}}
    profile = micro(**settings)
    ws = Workspace(profile, base_model=tmp_path / "model", folder=tmp_path / "runs")
    sizes = {split: len(ws.pairs[split]) for split in SPLITS}
    assert sizes["train"] == 24 and (recipe == "prm800k" or sizes == {"train": 24, "validation": 4, "test": 6})
    assert len(ws.reports) == (4 if recipe == "prm800k" else 3)
    log = (ws.reward_model_folder("icrm") / "log.jsonl").read_text().splitlines()
    parts = [value for entry in map(json.loads, log) for name, value in entry.items() if name.endswith("_loss")]
    assert parts and np.isfinite(parts).all()
    assert any("outcome_loss" in line for line in log) == (recipe == "prm800k")
    names = {path.name for path in ws.folder.iterdir()}
    again = Workspace(profile, base_model=tmp_path / "model", folder=tmp_path / "runs")
    assert again.pairs["test"][:] == ws.pairs["test"][:] and again.reports == ws.reports[: len(again.reports)]
    assert {path.name for path in ws.folder.iterdir()} == names
    if recipe == "prm800k":
        assert set(ws.tokenized["train"]["chosen_label"]) == {0.0}  # random weights solve nothing
        (drawn,) = ws.folder.glob("samples-*.jsonl")
        assert len(drawn.read_text().splitlines()) == 1 + 40


def test_a_math_profile_cannot_fit_its_own_sampler(published, tmp_path):
    profile = micro(data={"preferences": "prm800k", "files": str(published)})
    ws = Workspace(profile, base_model=tmp_path, folder=tmp_path / "runs")
    with pytest.raises(ValueError, match="set kind to 'base'"):
        _ = ws.pairs
