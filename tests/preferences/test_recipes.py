"""A recipe from files, from the hub, and from what was made before."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from published import TRAIN, UNIFIED, VAL, load, question, solve, write_lines, write_parquet

from icrm_lib.preferences.paper import SPLITS, prm800k, recipe_key, sources
from icrm_lib.profiles import DataSettings


def test_what_was_made_is_opened_and_memory_mapped(unified, tmp_path, monkeypatch):
    first, reports = load("unified-feedback", unified, tmp_path / "made", stride=2)
    monkeypatch.setattr(sources, "published_rows", None)
    again, same = load("unified-feedback", unified, tmp_path / "made", stride=2)
    assert same == reports and len(same) == 3
    for split in SPLITS:
        assert again[split][:] == first[split][:] and again[split].features == first[split].features
        assert [Path(file["filename"]).name for file in again[split].cache_files] == [f"{split}.arrow"]


def test_missing_files_say_what_to_download(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'train' of llm-blender/Unified-Feedback.*hf download.*'all/\*'"):
        load("unified-feedback", tmp_path, tmp_path / "made")
    write_lines(tmp_path / UNIFIED / "train.jsonl", TRAIN)
    with pytest.raises(FileNotFoundError, match="'val' of llm-blender"):
        load("unified-feedback", tmp_path, tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="of Skywork/Skywork-Reward-Preference-80K-v0.2.*hf download"):
        load("skywork+unified-feedback", tmp_path, tmp_path / "made")
    with pytest.raises(FileNotFoundError, match="phase2_train.jsonl.*curl"):
        load("prm800k", tmp_path, tmp_path / "made", draw=lambda prompts: [])
    with pytest.raises(ValueError, match="did you mean 'unified-feedback'"):
        load("unified_feedback", tmp_path, tmp_path / "made")
    with pytest.raises(ValueError, match="stride\\n  Input should be greater than or equal to 1"):
        load("unified-feedback", tmp_path, tmp_path / "made", stride=0)
    assert not (tmp_path / "made" / "reports.json").exists()


def test_the_hub_is_streamed_and_without_it_the_error_says_what_to_download(unified, tmp_path, monkeypatch):
    asked, real = [], sources.datasets.load_dataset

    def local(name, config=None, *, split, streaming, **options):
        asked.append((name, config, split, streaming, options))
        if split == "val":
            raise OSError("no route")
        return iter(TRAIN)

    monkeypatch.setattr(sources.datasets, "load_dataset", local)
    with pytest.raises(ConnectionError, match="'val': no route; where there is a network, run `hf download"):
        load("unified-feedback", "", tmp_path / "made")
    assert asked == [("llm-blender/Unified-Feedback", "all", split, True, {}) for split in ("train", "val")]

    def parquet(name, config, *, split, streaming):
        files = str(unified / UNIFIED / config / f"{split}-*.parquet")
        return real("parquet", data_files={split: files}, split=split, streaming=streaming)

    monkeypatch.setattr(sources.datasets, "load_dataset", parquet)
    streamed, _ = load("unified-feedback", "", tmp_path / "hub", stride=2)
    from_files, _ = load("unified-feedback", unified, tmp_path / "files", stride=2)
    assert all(streamed[split][:] == from_files[split][:] for split in SPLITS)


def test_lines_outside_the_hub_are_read_from_their_address(problems, served, tmp_path, monkeypatch):
    with open(problems / "prm800k" / "phase2_train.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(question(40, "one\u2028line"), ensure_ascii=False) + '\n{"question"\n')
    from_files, reports = load("prm800k", problems, tmp_path / "files", draw=solve)
    address = f"{served}/{(problems / 'prm800k').relative_to(tmp_path)}/phase2_train.jsonl"
    source = replace(prm800k.PRM800K, url=address)
    monkeypatch.setattr(prm800k, "PRM800K", source)
    streamed, same = load("prm800k", "", tmp_path / "streamed", draw=solve)
    assert all(streamed[split][:] == from_files[split][:] for split in SPLITS)
    assert [(r.line, r.reason) for r in same[0].refusals] == [(r.line, r.reason) for r in reports[0].refusals]
    assert [r.line for r in same[0].refusals] == [6, 83]
    monkeypatch.setattr(prm800k, "PRM800K", replace(source, url=f"{address}.gz"))
    with pytest.raises(ConnectionError, match="cannot read openai/prm800k, split 'phase2_train': .*404"):
        load("prm800k", "", tmp_path / "none", draw=solve)


def test_the_key_follows_stride_and_contents(unified):
    data = DataSettings(files=str(unified), stride=2)
    key = recipe_key("unified-feedback", data)
    assert key == recipe_key("unified-feedback", replace(data, train_pairs=7)) and json.dumps(key)
    assert key != recipe_key("unified-feedback", replace(data, stride=3))
    write_parquet(unified / UNIFIED / "all" / "val-00000-of-00001.parquet", VAL[:7])
    assert key != recipe_key("unified-feedback", data)
    assert recipe_key("prm800k", DataSettings())["openai/prm800k"].endswith("/phase2_train.jsonl")
