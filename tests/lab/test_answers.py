"""The generator of a workspace and its answers, by kind."""

import numpy as np
import pytest
import torch
from folders import conversations, folders, nouns
from tiny import micro
from transformers import AutoModelForCausalLM, AutoTokenizer

from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.checkpoints import model_fingerprint

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
