"""Artefacts are made when missing, reused when there, never half; for the testbed and for one's own data."""

import json
import logging
import os
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from icrm_lib import records, runtime
from icrm_lib.generator import cache as generator
from icrm_lib.lab import workspace
from icrm_lib.lab.workspace import SPLITS, Workspace
from icrm_lib.preferences import tokenize_pairs
from icrm_lib.profiles import (
    BaseModelSettings,
    DataSettings,
    GeneratorSettings,
    LanguageSettings,
    Profile,
    RewardModelSettings,
)
from icrm_lib.reward_model.model import RewardModel

LORA = {"lora_rank": 2, "lora_alpha": 4, "batch_size": 12, "epochs": 1.0}
MICRO = Profile(
    name="micro",
    data=DataSettings(train_pairs=24, validation_pairs=6, test_pairs=8, max_length=256),
    base_model=BaseModelSettings(hidden_size=16, layers=1, heads=2, vocabulary=400, steps=3, batch_size=8),
    generator=GeneratorSettings(**LORA),
    reward_model=RewardModelSettings(**LORA, sft_weight=0.01),
)
MAKERS = {  # the function behind each artefact that a model makes
    "base_model": "train_language_model",
    "generator": "fit_generator",
    "logprobs": "model_scorer",
    "reward_model": "train_reward_model",
}
ONCE = dict.fromkeys(MAKERS.values(), 1)
NOUNS = {"pairs", *MAKERS}


def micro(**sections):
    """Return the micro profile with some settings changed, e.g. `micro(data={"train_pairs": 12})`."""
    changed = {name: replace(getattr(MICRO, name), **values) for name, values in sections.items()}
    return replace(MICRO, **changed)


def folders(folder):
    """Return the names of the artefacts' folders, temporary ones included."""
    return {path.name for path in folder.iterdir()} - {".locks"} if folder.exists() else set()


def nouns(names):
    return {name.rpartition("-")[0] for name in names}


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with every artefact of the micro profile, seed 0."""
    folder = tmp_path_factory.mktemp("made")
    Workspace(MICRO, folder=folder).reward_model_folder("icrm")
    return folder


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copied")


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of what makes artefacts."""
    counter = Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            counter[name] += 1
            return function(*args, **kwargs)

        return call

    for name in MAKERS.values():
        monkeypatch.setattr(workspace, name, counted(name, getattr(workspace, name)))
    return counter


# Made once, then reused


def test_every_artefact_is_made_once_whole_and_reused(calls, tmp_path):
    first = Workspace(MICRO, folder=tmp_path)
    path = first.reward_model_folder("icrm")
    assert calls == ONCE
    assert nouns(folders(tmp_path)) == NOUNS and len(folders(tmp_path)) == len(NOUNS)
    for folder in map(tmp_path.joinpath, folders(tmp_path)):
        key = records.read_json(folder / records.MANIFEST)["key"]
        assert records.is_whole(folder, key, verify=True)
    before = contents(tmp_path)
    assert first.reward_model_folder("icrm") == path
    assert Workspace(MICRO, folder=tmp_path).reward_model_folder("icrm") == path
    assert calls == ONCE and contents(tmp_path) == before


def test_notebooks_may_ask_in_any_order(made, calls):
    """Whichever artefact is asked for first, what lies there is found."""
    for ask in (
        lambda ws: ws.pairs,
        lambda ws: ws.base_model,
        lambda ws: ws.generator,
        lambda ws: ws.with_logprobs("train"),
        lambda ws: ws.reward_model("icrm"),
    ):
        ask(Workspace(MICRO, folder=made))
    assert not calls


@pytest.mark.parametrize("noun", MAKERS)
def test_a_lost_artefact_alone_is_made_again_and_is_the_same(copied, calls, noun):
    (lost,) = (path for path in copied.iterdir() if path.name.startswith(noun))
    files = [path for path in lost.iterdir() if path.suffix in {".safetensors", ".arrow"}]
    want = {path.name: path.read_bytes() for path in files}
    assert want
    shutil.rmtree(lost)
    ws = Workspace(MICRO, folder=copied)
    assert ws.with_logprobs("train") is not None and ws.reward_model_folder("icrm").is_dir()
    assert {name: (lost / name).read_bytes() for name in want} == want
    assert calls == {MAKERS[noun]: 1}


def test_a_cut_artefact_is_made_again(copied, calls):
    folder = Workspace(MICRO, folder=copied).reward_model_folder("icrm")
    weights = folder / "model.safetensors"
    want = weights.read_bytes()
    weights.write_bytes(want[:-10])
    assert Workspace(MICRO, folder=copied).reward_model_folder("icrm") == folder
    assert weights.read_bytes() == want and calls == {"train_reward_model": 1}


@pytest.mark.parametrize(
    ("sections", "new"),
    [
        ({"reward_model": {"learning_rate": 1e-3}}, {"reward_model"}),
        ({"reward_model": {"consistency_weight": 0.2}}, {"reward_model"}),
        ({"generator": {"learning_rate": 2e-3}}, {"generator", "logprobs", "reward_model"}),
        ({"generator": {"kind": "base"}}, {"logprobs", "reward_model"}),
        ({"base_model": {"steps": 4}}, NOUNS - {"pairs"}),
        ({"data": {"train_pairs": 25}}, NOUNS - {"base_model"}),
        ({"language": {"preference_noise": 0.0}}, NOUNS),
        ({"generator": {"kind": "base", "temperature": 0.7}}, {"logprobs", "reward_model"}),
        ({"data": {"max_length": 200}}, {"base_model", "generator", "logprobs", "reward_model"}),
    ],
)
def test_a_changed_setting_makes_new_folders_for_what_depends_on_it(copied, sections, new):
    before = contents(copied)
    names = folders(copied)
    Workspace(micro(**sections), folder=copied).reward_model_folder("icrm")
    assert nouns(folders(copied) - names) == new
    assert before.items() <= contents(copied).items()  # the old ones lie there untouched


def test_seeds_of_workspace_and_reward_model_are_two_things(copied):
    names = folders(copied)
    zero, one = (Workspace(MICRO, folder=copied).reward_model_folder("icrm", seed) for seed in (0, 1))
    assert folders(copied) - names == {one.name} and zero.name in names
    heads = [AutoModelForSequenceClassification.from_pretrained(path).score.weight for path in (zero, one)]
    assert not torch.allclose(*heads, atol=1e-3)
    Workspace(MICRO, seed=1, folder=copied).reward_model_folder("icrm", 1)
    assert len(folders(copied)) == len(names) + 1 + len(NOUNS)


# Interrupted


@pytest.mark.parametrize(
    ("noun", "error"),
    [
        ("base_model", RuntimeError),
        ("generator", KeyboardInterrupt),
        ("logprobs", RuntimeError),
        ("reward_model", KeyboardInterrupt),
    ],
)
def test_what_dies_half_way_leaves_nothing_and_the_next_call_succeeds(copied, monkeypatch, noun, error):
    (lost,) = (path for path in copied.iterdir() if path.name.startswith(noun))
    shutil.rmtree(lost)
    maker = MAKERS[noun]
    function, died = getattr(workspace, maker), []

    def dies(*args, **kwargs):
        function(*args, **kwargs)
        if "folder" in kwargs:  # half of it lies there
            assert any(kwargs["folder"].iterdir()) and kwargs["folder"] != lost
        died.append(maker)
        raise error

    def ask():
        ws = Workspace(MICRO, folder=copied)
        return ws.with_logprobs("train"), ws.reward_model_folder("icrm")

    monkeypatch.setattr(workspace, maker, dies)
    names = folders(copied)
    with pytest.raises(error):
        ask()
    assert died == [maker] and folders(copied) == names
    monkeypatch.undo()
    ask()
    assert folders(copied) == names | {lost.name}


# Testbed data


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


def test_the_pretraining_corpus_has_the_form_of_the_pairs(made):
    ws = Workspace(MICRO, folder=made)
    rows = ws._testbed_sequences(ws.tokenizer, 400)
    assert len(rows) >= 400 and set(rows["prompt_length"]) == {1}
    asked = []
    for ids in rows["input_ids"]:
        assert ids[-1] == ws.tokenizer.eos_token_id
        probs = ws.language.token_probs(ids)  # raises for what the language does not say
        asked.append(tuple(ids[: int((probs == 1).argmin())]))
    assert len(set(asked)) == len(ws.language.prompts)
    assert len(set(asked[:64])) > 40  # mixed: a batch holds many prompts


# One's own data


@pytest.fixture(scope="module")
def own_file(tmp_path_factory):
    """72 good rows over 36 prompts, with ratings, and three bad ones."""
    rows = []
    for number in range(72):
        topic = number % 36
        rows.append(
            {
                "prompt": f"What is {topic} plus {topic}? Straße 😀",
                "chosen": f"It is {2 * topic}, as {topic} + {topic} = {2 * topic}. ({number})",
                "rejected": f"I do not know {number}.",
                "chosen_rating": 5 + number % 3,
                "rejected_rating": 2,
            }
        )
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines.insert(3, '{"prompt": "cut off", "chosen": "he')
    lines.insert(9, json.dumps({"prompt": "What?", "chosen": "same", "rejected": "same"}))
    lines.append(json.dumps({"prompt": "What?", "chosen": "no rejected one"}))
    path = tmp_path_factory.mktemp("own") / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def own(own_file, tmp_path_factory):
    """Workspace on that file, with a base model from scratch, its ICRM reward model trained."""
    folder = tmp_path_factory.mktemp("own_runs")
    ws = Workspace(MICRO, preferences=own_file, base_model="scratch", folder=folder)
    ws.reward_model_folder("icrm")
    return ws


def conversations(dataset, side):
    return [[*row["prompt"], {"role": "assistant", "content": row[side]}] for row in dataset]


def test_own_file_gives_a_reward_model_that_scores_held_out_pairs(own):
    model, test = own.reward_model("icrm"), own.pairs["test"]
    scores = [model.score(conversations(test, side)) for side in ("chosen", "rejected")]
    assert scores[0].shape == scores[1].shape == (len(test),)
    assert np.isfinite(scores).all() and np.std(scores) > 0
    again = Workspace(own.profile, folder=own.folder).reward_model("icrm")
    np.testing.assert_array_equal(again.score(conversations(test, "chosen")), scores[0])


def test_own_file_is_split_by_prompt_and_capped(own, own_file):
    assert {split: len(data) for split, data in own.pairs.items()} == {
        "train": 24,
        "validation": 6,
        "test": 8,
    }
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
    assert ws.pairs and [refusal.line for refusal in ws.reports[0].refusals] == [4, 10, 75]
    assert ws.reports[0].kept == 72
    assert ws.tokenized and len(ws.reports) == 1 + len(SPLITS)
    for split, report in zip(SPLITS, ws.reports[1:], strict=True):
        assert report.kept == len(ws.tokenized[split]) == len(ws.pairs[split]) - report.refused
        refused = {refusal.line for refusal in report.refusals}
        assert refused.isdisjoint(ws.tokenized[split]["line"]) and refused <= set(ws.pairs[split]["line"])
    assert ws.reports[-1].refused > 0
    talks = ws.conversations("test")
    assert talks["prompt_id"] == list(ws.tokenized["test"]["prompt_id"])
    for side in ("chosen", "rejected"):
        for talk, ids in zip(talks[side], ws.tokenized["test"][f"{side}_ids"], strict=True):
            assert ws.tokenizer.decode(ids, skip_special_tokens=True).endswith(talk[-1]["content"])


def test_the_scratch_tokenizer_sees_training_texts_only(own, own_file, monkeypatch, tmp_path):
    train = own.pairs["train"]
    texts = [message["content"] for prompt in train["prompt"] for message in prompt]
    want = Counter([*texts, *train["chosen"], *train["rejected"]])
    assert Counter(own._texts()) == want
    seen, scratch_tokenizer = [], workspace.scratch_tokenizer

    def note(given, vocabulary):
        seen.extend(given)
        return scratch_tokenizer(given, vocabulary)

    monkeypatch.setattr(workspace, "scratch_tokenizer", note)
    assert Workspace(MICRO, preferences=own_file, base_model="scratch", folder=tmp_path).base_model
    assert Counter(seen) == want
    held_out = {text for split in ("validation", "test") for text in own.pairs[split]["chosen"]}
    assert held_out and not held_out & set(seen)


def test_the_scratch_model_learns_prompts_too(own, own_file, monkeypatch, tmp_path):
    train_language_model, given = workspace.train_language_model, []

    def note(model, dataset, **kwargs):
        given.append(dataset)
        return train_language_model(model, dataset, **kwargs)

    monkeypatch.setattr(workspace, "train_language_model", note)
    assert Workspace(MICRO, preferences=own_file, base_model="scratch", folder=tmp_path).base_model
    (rows,) = given
    assert set(rows["prompt_length"]) == {1}  # all but BOS is predicted
    both = [*own.tokenized["train"]["chosen_ids"], *own.tokenized["train"]["rejected_ids"]]
    assert Counter(map(tuple, rows["input_ids"])) == Counter(map(tuple, both))


def test_looking_at_tokenised_pairs_trains_no_model(own, own_file, calls, tmp_path):
    assert Workspace(MICRO, folder=tmp_path / "testbed").tokenized
    ws = Workspace(MICRO, preferences=own_file, base_model="scratch", folder=tmp_path / "own")
    assert ws.tokenized["train"]["chosen_ids"][:] == own.tokenized["train"]["chosen_ids"][:]
    assert not calls and nouns(folders(ws.folder)) == {"tokenizer"}


def test_the_scratch_model_is_of_the_profiles_size(own):
    config = AutoModelForCausalLM.from_pretrained(own.base_model).config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 1, 2)
    assert 262 < config.vocab_size <= 400 and config.vocab_size == len(own.tokenizer)
    assert config.max_position_embeddings == 256


def test_another_file_makes_another_scratch_model(own, own_file, tmp_path):
    changed = tmp_path / "other.jsonl"
    text = own_file.read_text(encoding="utf-8").replace("It is", "That makes")
    changed.write_text(text, encoding="utf-8")
    other = Workspace(MICRO, preferences=changed, base_model="scratch", folder=own.folder)
    assert other.base_model != own.base_model
    same = tmp_path / "same.jsonl"
    shutil.copy(own_file, same)
    moved = Workspace(MICRO, preferences=same, base_model="scratch", folder=own.folder)
    assert moved.base_model == own.base_model


def test_margins_count_only_where_they_are_asked_for(own, own_file, tmp_path):
    assert set(own.tokenized["train"]["margin"]) == {3.0, 4.0, 5.0}
    ws = Workspace(MICRO, preferences=own_file, base_model=own.base_model, folder=tmp_path)
    plain, with_margin = (final_loss(ws.reward_model_folder(method)) for method in ("bt", "bt_margin"))
    assert plain < 1.2 < with_margin  # -log sigmoid(0) = 0.69; about 4 with a margin of 4
    asked = Workspace(
        micro(reward_model={"margin": True}), preferences=own_file, base_model=own.base_model, folder=tmp_path
    )
    assert asked.reward_model_folder("bt") == ws.reward_model_folder("bt_margin")


@pytest.mark.parametrize("method", ["bt", "icrm", "grm_sft"])
def test_ratings_reach_methods_with_a_margin_alone(own, own_file, monkeypatch, tmp_path, method):
    """And the others make the same artefact with and without ratings in the file."""
    unrated = tmp_path / "unrated.jsonl"
    text = own_file.read_text(encoding="utf-8")
    unrated.write_text(text.replace("chosen_rating", "note").replace("rejected_rating", "remark"), encoding="utf-8")
    train_reward_model, given = workspace.train_reward_model, []

    def note(base_model, tokenizer, rows, *args, **kwargs):
        given.append(set(rows.column_names))
        return train_reward_model(base_model, tokenizer, rows, *args, **kwargs)

    monkeypatch.setattr(workspace, "train_reward_model", note)
    options = {"base_model": own.base_model, "folder": tmp_path / "runs"}
    rated, plain = (Workspace(MICRO, preferences=file, **options) for file in (own_file, unrated))
    assert "margin" in rated.tokenized["train"].column_names and "margin" not in plain.tokenized["train"].column_names
    assert rated.reward_model_folder(method) == plain.reward_model_folder(method)
    rated.reward_model_folder("bt_margin")
    assert ["margin" in names for names in given] == [False, True]


def final_loss(folder):
    entries = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    (loss,) = (entry["train_loss"] for entry in entries if "train_loss" in entry)
    return loss


def test_changed_ratings_make_another_reward_model_where_margins_count(own, own_file, tmp_path):
    changed = tmp_path / "rated.jsonl"
    text = own_file.read_text(encoding="utf-8").replace('"rejected_rating": 2', '"rejected_rating": 1')
    changed.write_text(text, encoding="utf-8")
    paths = {}
    for file in (own_file, changed):
        ws = Workspace(MICRO, preferences=file, base_model=own.base_model, folder=tmp_path / "runs")
        for method in ("bt_margin", "bt"):
            paths[method, file] = ws.reward_model_folder(method)
    assert paths["bt_margin", own_file] != paths["bt_margin", changed]
    assert paths["bt", own_file] == paths["bt", changed]


# One's own base model


def test_a_local_directory_is_the_base_model(base_model, own_file, tmp_path):
    ws = Workspace(MICRO, preferences=own_file, base_model=base_model, folder=tmp_path)
    assert ws.base_model == str(base_model)
    relative = os.path.relpath(base_model, runtime.project_root())
    path = Workspace(MICRO, base_model=relative, folder=tmp_path).base_model
    assert os.path.samefile(path, base_model) and os.path.isabs(path)


def test_a_local_base_model_is_fitted_trained_and_left_alone(base_model, calls, tmp_path):
    before = contents(base_model)
    ws = Workspace(MICRO, base_model=base_model, folder=tmp_path)
    model = ws.reward_model("icrm")
    scores = model.score(conversations(ws.pairs["test"], "chosen"))
    assert model.model.config.hidden_size == 32 and np.isfinite(scores).all()
    assert nouns(folders(tmp_path)) == NOUNS - {"base_model"} and calls["train_language_model"] == 0
    assert contents(base_model) == before


def test_other_weights_under_the_same_path_make_new_artefacts(base_model, tmp_path):
    mine = shutil.copytree(base_model, tmp_path / "mine")
    first = Workspace(MICRO, base_model=mine, folder=tmp_path / "runs").reward_model_folder("bt")
    model = AutoModelForCausalLM.from_pretrained(mine)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    model.save_pretrained(mine)
    assert Workspace(MICRO, base_model=mine, folder=tmp_path / "runs").reward_model_folder("bt") != first


def test_a_hub_id_is_passed_on(tmp_path):
    assert Workspace(MICRO, base_model="owner/name", folder=tmp_path).base_model == "owner/name"
    assert folders(tmp_path) == set()


# Combinations


EXACT = micro(generator={"kind": "exact"})


@pytest.mark.parametrize(
    ("profile", "arguments", "message"),
    [
        (MICRO, {"preferences": "mine.jsonl"}, "set BASE_MODEL to 'scratch'"),
        (micro(generator={"kind": "fittted"}), {}, "generator kind 'fittted'"),
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


# Kinds of generator


def test_exact_probabilities_come_from_the_language_alone(copied, calls):
    ws = Workspace(EXACT, folder=copied)
    rows = ws.with_logprobs("validation")
    assert len(rows) == 6
    for row in rows:
        for side in ("chosen", "rejected"):
            want = np.log(ws.language.token_probs(row[f"{side}_ids"])[row["prompt_length"] :])
            np.testing.assert_allclose(row[f"{side}_logprobs"], want, rtol=1e-6)
    with pytest.raises(ValueError, match="workspace.language"):
        _ = ws.generator
    assert not calls
    assert ws.reward_model_folder("icrm") != Workspace(MICRO, folder=copied).reward_model_folder("icrm")


@pytest.mark.parametrize(("kind", "temperature"), [("fitted", 1.0), ("base", 1.0), ("base", 2.0)])
def test_probabilities_are_those_of_the_generator(copied, kind, temperature):
    ws = Workspace(micro(generator={"kind": kind, "temperature": temperature}), folder=copied)
    assert (ws.generator == ws.base_model) == (kind == "base")
    model = AutoModelForCausalLM.from_pretrained(ws.generator)
    for row in ws.with_logprobs("validation"):
        ids, start = row["chosen_ids"], row["prompt_length"]
        with torch.no_grad():
            logprobs = (model(torch.tensor([ids])).logits[0, :-1] / temperature).log_softmax(-1)
        want = logprobs[range(start - 1, len(ids) - 1), ids[start:]]
        np.testing.assert_allclose(row["chosen_logprobs"], want, rtol=1e-4, atol=1e-5)


def test_the_fitted_generator_is_a_plain_directory_other_than_the_base(made):
    ws = Workspace(MICRO, folder=made)
    models = map(AutoModelForCausalLM.from_pretrained, (ws.base_model, ws.generator))
    base, fitted = (model.state_dict() for model in models)
    assert base.keys() == fitted.keys() and any(not torch.equal(base[name], fitted[name]) for name in base)
    assert generator.model_fingerprint(ws.base_model) != generator.model_fingerprint(ws.generator)
    talk = conversations(ws.pairs["test"], "chosen")[0]
    assert AutoTokenizer.from_pretrained(ws.generator).apply_chat_template(talk) == ws.tokenizer.apply_chat_template(
        talk
    )


@pytest.mark.parametrize("method", ["bt", "icrm_uniform", "martingale"])
def test_a_method_without_probabilities_fits_no_generator(calls, tmp_path, method):
    ws = Workspace(MICRO, folder=tmp_path)
    ws.reward_model_folder(method)
    assert nouns(folders(tmp_path)) == {"pairs", "base_model", "reward_model"}
    assert calls == {"train_language_model": 1, "train_reward_model": 1}


def test_weights_other_than_probabilities_have_caches_of_their_own(copied):
    ws = Workspace(MICRO, folder=copied)
    probabilities, names = ws.reward_model_folder("icrm"), folders(copied)
    made = {method: ws.reward_model_folder(method) for method in ("icrm_entropy", "icrm_top1_margin")}
    assert nouns(folders(copied) - names) == {"logprobs", "reward_model"} and len(folders(copied) - names) == 4
    assert len({probabilities, *made.values()}) == 3
    with pytest.raises(ValueError, match="'exact' knows logprobs only, not negentropies"):
        Workspace(EXACT, folder=copied).reward_model_folder("icrm_entropy")


# Reward models


def test_a_reward_model_with_an_mlp_head_is_read_as_it_was_trained(copied, monkeypatch):
    ws = Workspace(micro(reward_model={"mlp_size": 8}), folder=copied)
    trained, kept = workspace.train_reward_model, []
    monkeypatch.setattr(workspace, "train_reward_model", lambda *a, **k: kept.append(trained(*a, **k)) or kept[0])
    talks = conversations(ws.pairs["test"], "chosen")
    scores = ws.reward_model("grm_sft_mlp").score(talks)
    want = workspace.RewardModel(kept[0].model, ws.tokenizer).score(talks)
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


def test_log_messages_say_what_is_made_and_name_no_machine(copied, caplog):
    shutil.rmtree(Workspace(MICRO, folder=copied).reward_model_folder("icrm"))
    with caplog.at_level(logging.INFO, logger="icrm_lib"):
        Workspace(MICRO, folder=copied).reward_model_folder("icrm")
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("making reward_model-") for line in said) == 1
    assert any(line.startswith("reusing base_model-") for line in said)
    assert not any(str(copied) in line or os.sep in line for line in said)


# Prompts and judge ---------------------------------------------------------------------------------------------------


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


def test_another_generator_under_the_same_name_makes_another_reward_model(tmp_path):
    own = Workspace(MICRO, folder=tmp_path / "own")
    named = tmp_path / "named"
    shutil.copytree(own.base_model, named)
    shutil.copytree(own.folder, tmp_path / "runs")
    options = {"kind": "base", "model": str(named)}
    first = Workspace(micro(generator=options), folder=tmp_path / "runs").reward_model_folder("icrm")
    assert Workspace(micro(generator=options), folder=tmp_path / "runs").reward_model_folder("icrm") == first
    model = AutoModelForCausalLM.from_pretrained(named)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    model.save_pretrained(named)
    assert Workspace(micro(generator=options), folder=tmp_path / "runs").reward_model_folder("icrm") != first


def test_a_method_that_subtracts_ratings_needs_them(tmp_path):
    with pytest.raises(
        ValueError, match="bt_margin subtracts the difference of ratings, and not all pairs of 'testbed'"
    ):
        Workspace(MICRO, folder=tmp_path).reward_model_folder("bt_margin")
