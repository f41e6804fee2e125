"""A workspace's face: reward models of every method, the judge, and what is refused at once."""

import json

import numpy as np
import pytest
import torch
from folders import conversations, folders
from tiny import micro
from transformers import AutoModelForSequenceClassification

from icrm_lib import runtime
from icrm_lib.lab import workspace
from icrm_lib.lab.data import SPLITS
from icrm_lib.lab.workspace import Workspace
from icrm_lib.preferences import tokenize_pairs
from icrm_lib.reward_model import RewardModel

MICRO, EXACT = micro(), micro(generator={"kind": "exact"})


def test_own_file_gives_a_reward_model_that_scores_held_out_pairs(own):
    model, test = own.reward_model("icrm"), own.pairs["test"]
    scores = [model.score(conversations(test, side)) for side in ("chosen", "rejected")]
    assert scores[0].shape == scores[1].shape == (len(test),)
    assert np.isfinite(scores).all() and np.std(scores) > 0
    again = Workspace(own.profile, folder=own.folder).reward_model("icrm")
    np.testing.assert_array_equal(again.score(conversations(test, "chosen")), scores[0])


def test_ratings_count_where_they_are_subtracted_and_nowhere_else(own, own_file, monkeypatch, tmp_path):
    text = own_file.read_text(encoding="utf-8")
    texts = {
        "rated": text,
        "changed": text.replace('"rejected_rating": 2', '"rejected_rating": 1'),
        "unrated": text.replace("chosen_rating", "note").replace("rejected_rating", "remark"),
    }
    train_reward_model, given = workspace.train_reward_model, []

    def note(base_model, tokenizer, rows, *args, **kwargs):
        given.append("margin" in rows.column_names)
        return train_reward_model(base_model, tokenizer, rows, *args, **kwargs)

    monkeypatch.setattr(workspace, "train_reward_model", note)
    spaces = {}
    for name, content in texts.items():
        (tmp_path / f"{name}.jsonl").write_text(content, encoding="utf-8")
        options = {"preferences": tmp_path / f"{name}.jsonl", "base_model": own.base_model, "folder": tmp_path / "runs"}
        spaces[name] = Workspace(MICRO, **options)
    assert [set(ws.tokenized["train"]["margin"]) for ws in (spaces["rated"], spaces["changed"])] == [
        {3, 4, 5},
        {4, 5, 6},
    ]
    assert "margin" not in spaces["unrated"].tokenized["train"].column_names
    for method in ("bt", "icrm", "grm_sft"):
        assert len({ws.reward_model_folder(method) for ws in spaces.values()}) == 1
    margin, other = (spaces[name].reward_model_folder("bt_margin") for name in ("rated", "changed"))
    assert margin != other and given == [False, False, False, True, True]
    plain = final_loss(spaces["rated"].reward_model_folder("bt"))
    assert plain < 1.2 < final_loss(margin)  # -log sigmoid(0) = 0.69; about 4 with a margin of 4
    options |= {"preferences": tmp_path / "rated.jsonl"}
    assert Workspace(micro(reward_model={"margin": True}), **options).reward_model_folder("bt") == margin


@pytest.mark.parametrize(
    ("profile", "arguments", "message"),
    [
        (MICRO, {"preferences": "mine.jsonl"}, "set BASE_MODEL to 'scratch'"),
        (EXACT, {"preferences": "mine.jsonl", "base_model": "scratch"}, "testbed only"),
        ("smok", {}, "did you mean 'smoke'"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(tmp_path, profile, arguments, message):
    with pytest.raises(ValueError, match=message):
        Workspace(profile, folder=tmp_path, **arguments)
    assert folders(tmp_path) == set()


def test_a_profile_is_loaded_by_name_and_lies_under_its_own_name():
    ws = Workspace("smoke")
    assert ws.profile.name == "smoke" and ws.folder == runtime.project_root() / "runs/smoke/artefacts"
    assert Workspace(MICRO).folder == runtime.project_root() / "runs/micro/artefacts"


def test_a_reward_model_with_an_mlp_head_is_read_as_it_was_trained(copied, monkeypatch):
    ws = Workspace(micro(reward_model={"mlp_size": 8}), folder=copied)
    train, kept = workspace.train_reward_model, []
    monkeypatch.setattr(workspace, "train_reward_model", lambda *a, **k: kept.append(train(*a, **k)) or kept[0])
    talks = conversations(ws.pairs["test"], "chosen")
    scores = ws.reward_model("grm_sft_mlp").score(talks)
    want = RewardModel(kept[0].model, ws.tokenizer).score(talks)
    np.testing.assert_allclose(scores, want, atol=1e-5)
    np.testing.assert_array_equal(ws.reward_model("grm_sft_mlp").score(talks), scores)


def test_methods_differ_and_start_from_the_same_pairs(copied):
    ws = Workspace(MICRO, folder=copied)
    talks = conversations(ws.pairs["test"], "chosen")
    scores = {method: ws.reward_model(method).score(talks) for method in ("bt", "icrm", "icrm_uniform")}
    assert not np.allclose(scores["bt"], scores["icrm"], atol=1e-5)
    assert not np.allclose(scores["icrm_uniform"], scores["icrm"], atol=1e-7)
    with pytest.raises(ValueError, match="unknown method 'icmr'"):
        ws.reward_model_folder("icmr")


def test_the_reward_model_is_a_plain_directory_with_its_log(made):
    ws = Workspace(MICRO, folder=made)
    folder = ws.reward_model_folder("icrm")
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "log.jsonl"} <= files
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pairs, _ = tokenize_pairs(ws.pairs["test"], ws.tokenizer, max_length=256)
    with torch.no_grad():
        want = [plain(torch.tensor([ids])).logits.item() for ids in pairs["chosen_ids"]]
    got = ws.reward_model("icrm").score(conversations(ws.pairs["test"], "chosen"))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_testbeds_judge_is_its_gold_score(tmp_path):
    ws = Workspace(micro(downstream={"prompts": 3}), folder=tmp_path)
    prompts = {split: ws.prompts(split) for split in SPLITS}
    assert [len(found) for found in prompts.values()] == [3, 3, 3]
    assert [prompt[0]["content"] for prompt in prompts["test"]] == ws.language.split_prompts()[2][:3]
    talks = [[*prompts["test"][0], {"role": "assistant", "content": text}] for text in ("", "trust")]
    assert ws.judge(talks).tolist() == [ws.language.gold_score(talk) for talk in talks]


def test_elsewhere_the_judge_is_a_reward_model_that_the_profile_names(tmp_path):
    rows = [{"prompt": f"Say {i // 2}", "chosen": f"{i}", "rejected": f"no {i}"} for i in range(48)]  # each asked twice
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"preferences": tmp_path / "pairs.jsonl", "base_model": "scratch", "folder": tmp_path / "runs"}
    ws = Workspace(micro(base_model={"vocabulary": 300}), **options)
    prompts = ws.prompts("train")
    assert len(prompts) == len({prompt[0]["content"] for prompt in prompts}) == len(set(ws.pairs["train"]["prompt_id"]))
    talks = [[*prompts[0], {"role": "assistant", "content": text}] for text in ("yes", "no")]
    with pytest.raises(ValueError, match="names no judge, and only the testbed has gold scores"):
        ws.judge(talks)
    judge = ws.reward_model_folder("bt")
    judged = Workspace(micro(base_model={"vocabulary": 300}, downstream={"judge": str(judge)}), **options)
    np.testing.assert_allclose(judged.judge(talks), RewardModel.from_pretrained(judge).score(talks))


def test_a_method_that_subtracts_ratings_needs_them(tmp_path):
    with pytest.raises(
        ValueError, match="bt_margin subtracts the difference of ratings, and not all pairs of 'testbed'"
    ):
        Workspace(MICRO, folder=tmp_path).reward_model_folder("bt_margin")


def final_loss(folder):
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    (loss,) = (entry["train_loss"] for entry in entries if "train_loss" in entry)
    return loss
