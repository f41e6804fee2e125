"""The models of a workspace: the base model, the generator and its answers, by kind."""

import os
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from folders import contents, conversations, folders, nouns
from peft import LoraConfig, get_peft_model
from tiny import micro, save_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from icrm_lib import runtime
from icrm_lib.generator import SIBLINGS
from icrm_lib.lab import models
from icrm_lib.lab.models import testbed_corpus as corpus_of
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.checkpoints import model_fingerprint

MICRO = micro()


def test_the_pretraining_corpus_has_the_form_of_the_pairs(made):
    ws = Workspace(MICRO, folder=made)
    rows = corpus_of(ws, 400)
    assert len(rows) >= 400 and set(rows["prompt_length"]) == {1}
    asked = []
    for ids in rows["input_ids"]:
        assert ids[-1] == ws.tokenizer.eos_token_id
        probs = ws.language.token_probs(ids)  # raises for what the language does not say
        asked.append(tuple(ids[: int((probs == 1).argmin())]))
    assert len(set(asked)) == len(ws.language.prompts)
    assert len(set(asked[:64])) > 40  # mixed: a batch holds many prompts


def test_the_scratch_model_learns_prompts_too(own, own_file, monkeypatch, tmp_path):
    train_language_model, given = models.train_language_model, []

    def note(model, dataset, **kwargs):
        given.append(dataset)
        return train_language_model(model, dataset, **kwargs)

    monkeypatch.setattr(models, "train_language_model", note)
    assert Workspace(MICRO, preferences=own_file, base_model="scratch", folder=tmp_path).base_model
    (rows,) = given
    assert set(rows["prompt_length"]) == {1}  # all but BOS is predicted
    both = [*own.tokenized["train"]["chosen_ids"], *own.tokenized["train"]["rejected_ids"]]
    assert Counter(map(tuple, rows["input_ids"])) == Counter(map(tuple, both))


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
    assert (
        nouns(folders(tmp_path)) == {"pairs", "generator", "logprobs", "reward_model"}
        and calls["train_language_model"] == 0
    )
    assert contents(base_model) == before


def test_a_hub_id_is_passed_on(tmp_path):
    assert Workspace(MICRO, base_model="owner/name", folder=tmp_path).base_model == "owner/name"
    assert folders(tmp_path) == set()


MICRO, EXACT = micro(), micro(generator={"kind": "exact"})


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
    assert model_fingerprint(ws.base_model) != model_fingerprint(ws.generator)
    talk = conversations(ws.pairs["test"], "chosen")[0]
    assert AutoTokenizer.from_pretrained(ws.generator).apply_chat_template(talk) == ws.tokenizer.apply_chat_template(
        talk
    )


@pytest.mark.parametrize("method", ["bt", "icrm_uniform", "martingale", "dense_bt"])
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
    with pytest.raises(ValueError, match="'exact' knows logprobs and siblings only, not negentropies"):
        Workspace(EXACT, folder=copied).reward_model_folder("icrm_entropy")


def test_next_tokens_of_the_language_are_its_most_probable_ones(copied, calls):
    ws = Workspace(EXACT, folder=copied)
    for row in ws.with_logprobs("validation", SIBLINGS):
        ids, start = row["rejected_ids"], row["prompt_length"]
        for t, (found, logprobs) in enumerate(
            zip(row["rejected_sibling_ids"], row["rejected_sibling_logprobs"], strict=True), start
        ):
            probs = ws.language.next_token_probs(ids[:t])
            np.testing.assert_allclose(np.exp(logprobs), np.sort(probs)[::-1][: len(found)], rtol=1e-6)
            np.testing.assert_allclose(np.exp(logprobs), probs[found], rtol=1e-6)
    assert not calls


def test_expected_consistency_asks_the_fitted_generator_for_next_tokens(copied):
    ws, names = Workspace(MICRO, folder=copied), folders(copied)
    assert ws.reward_model_folder("expected") != ws.reward_model_folder("martingale")
    assert nouns(folders(copied) - names) == {"logprobs", "reward_model"}
    model = AutoModelForCausalLM.from_pretrained(ws.generator)
    row = ws.with_logprobs("train", SIBLINGS)[0]
    with torch.no_grad():
        logprobs = model(torch.tensor([row["chosen_ids"]])).logits[0, :-1].log_softmax(-1)
    best = logprobs[row["prompt_length"] - 1 :].topk(8)
    np.testing.assert_allclose(row["chosen_sibling_logprobs"], best.values, rtol=1e-4, atol=1e-5)


def test_an_adapter_as_base_model_is_merged_first(tmp_path):
    save_tiny("llama", tmp_path / "base")
    lora = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), lora)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")  # without a tokenizer: it is the base model's
    workspace = Workspace(micro(), base_model=str(tmp_path / "adapter"), folder=tmp_path / "made")
    ids = torch.tensor([workspace.tokenizer.encode("Which month is it?")])
    merged = AutoModelForCausalLM.from_pretrained(workspace.base_model).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model.eval()(ids).logits, rtol=1e-3, atol=1e-3)
