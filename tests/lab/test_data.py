"""Pairs, splits and tokens: of the testbed, of one's own file, of the published files."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from folders import folders, nouns
from published import SKYWORK, UNIFIED, question, rated, skywork, write_lines, write_parquet
from tiny import TEXTS, micro, save_tiny

from icrm_lib.lab import data
from icrm_lib.lab.data import SPLITS
from icrm_lib.lab.workspace import Workspace
from icrm_lib.profiles import LanguageSettings

MICRO = micro()


def test_testbed_pairs_have_the_asked_sizes_and_share_no_prompt(made):
    pairs = Workspace(MICRO, folder=made).pairs
    assert {split: len(data) for split, data in pairs.items()} == {"train": 24, "validation": 6, "test": 8}
    prompts = [set(dataset["prompt_id"]) for dataset in pairs.values()]
    assert all(not a & b for i, a in enumerate(prompts) for b in prompts[:i])


def test_testbed_pairs_follow_the_seed(tmp_path):
    texts = {}
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        pairs = Workspace(MICRO, seed=seed, folder=tmp_path / run).pairs
        texts[run] = {split: [*pairs[split]["chosen"], *pairs[split]["rejected"]] for split in SPLITS}
    assert texts["a"] == texts["b"]
    assert all(texts["a"][split] != texts["c"][split] for split in SPLITS)


def test_the_language_is_the_profiles():
    ws = Workspace(replace(MICRO, language=LanguageSettings(seed=3, persistence=0.5, subword=True)))
    assert (ws.language.seed, ws.language.persistence, ws.language.subword) == (3, 0.5, True)


def test_own_file_is_split_by_prompt_and_capped(own, own_file):
    assert {split: len(data) for split, data in own.pairs.items()} == {"train": 24, "validation": 6, "test": 8}
    prompts = [set(data["prompt_id"]) for data in own.pairs.values()]
    assert all(not a & b for i, a in enumerate(prompts) for b in prompts[:i])
    source = {"preferences": own_file, "base_model": "scratch", "folder": own.folder}
    wide = Workspace(micro(data={"train_pairs": 999}), **source)
    assert len(wide.pairs["train"]) == 2 * round(0.7 * 36)  # at most: all there are
    everything = micro(data={"test_pairs": 999})
    test = [set(Workspace(everything, seed=seed, **source).pairs["test"]["prompt_id"]) for seed in (0, 1)]
    assert prompts[2] <= test[0] != test[1] and len(test[0]) == len(test[1])


def test_every_refused_row_is_reported_and_the_others_stay_aligned(own, own_file, tmp_path):
    responses = [len(row["chosen_ids"]) - row["prompt_length"] for row in own.tokenized["test"]]
    assert min(responses) < max(responses)
    profile = micro(data={"max_length": max(responses)})  # no room for a prompt before the longest
    ws = Workspace(profile, preferences=own_file, base_model=own.base_model, folder=tmp_path)
    (report,) = ws.reports
    reading = {refusal.line for refusal in report.refusals if refusal.reason != "reply too long"}
    assert reading == {4, 10, 75} and report.refused > 3
    assert report.kept + report.refused == 75
    assert report.used == {split: len(rows) for split, rows in ws.tokenized.items()}
    for split in SPLITS:
        assert ws.pairs[split]["line"][:] == ws.tokenized[split]["line"][:]
        assert {refusal.line for refusal in report.refusals}.isdisjoint(ws.tokenized[split]["line"])
    talks = ws.conversations("test")
    assert talks["prompt_id"] == list(ws.tokenized["test"]["prompt_id"])
    for side in ("chosen", "rejected"):
        for talk, ids in zip(talks[side], ws.tokenized["test"][f"{side}_ids"], strict=True):
            assert ws.tokenizer.decode(ids, skip_special_tokens=True).endswith(talk[-1]["content"])


def test_the_scratch_tokenizer_sees_training_texts_only(own, own_file, monkeypatch, tmp_path):
    train = own.pairs["train"]
    texts = [message["content"] for prompt in train["prompt"] for message in prompt]
    want = Counter([*texts, *train["chosen"], *train["rejected"]])
    assert Counter(own.training_texts()) == want
    seen, scratch_tokenizer = [], data.scratch_tokenizer

    def note(given, vocabulary):
        seen.extend(given)
        return scratch_tokenizer(given, vocabulary)

    monkeypatch.setattr(data, "scratch_tokenizer", note)
    assert Workspace(MICRO, preferences=own_file, base_model="scratch", folder=tmp_path).base_model
    assert Counter(seen) == want
    held_out = {text for split in ("validation", "test") for text in own.pairs[split]["chosen"]}
    assert held_out and not held_out & set(seen)


def test_looking_at_tokenised_pairs_trains_no_model(own, own_file, calls, tmp_path):
    assert Workspace(MICRO, folder=tmp_path / "testbed").tokenized
    ws = Workspace(MICRO, preferences=own_file, base_model="scratch", folder=tmp_path / "own")
    assert ws.tokenized["train"]["chosen_ids"][:] == own.tokenized["train"]["chosen_ids"][:]
    assert not calls and nouns(folders(ws.folder)) == {"tokenizer"}


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
