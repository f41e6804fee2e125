"""Language-model heads of every kind: the fit and the query equal the cross-entropy of the model's own logits."""

import pytest
import torch
import torch.nn.functional as F
from transformers import T5Config, TrainingArguments

from icrm_lib.generator import token_logprobs
from icrm_lib.language_model.causal import padded, refuse_transformed_logits
from icrm_lib.language_model.lm_head import lm_head_of, projecting, transforms_logits
from icrm_lib.language_model.scratch import LanguageModelTrainer
from tests.architectures import random_rows, tiny_classifier, tiny_config, tiny_lm

PLAIN = ("llama", "phi", "gptj", "codegen", "gpt_neox", "gpt2", "opt", "gpt_neo", "bloom", "falcon", "mpt")
NARROW = {"head_dim": 8, "num_key_value_heads": 1}
TRANSFORMS = {
    "gemma2": {"final_logit_softcapping": 0.5, **NARROW},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "hyperclovax": {"logits_scaling": 8.0},  # multiplies, where Granite divides
    "minicpm3": {"dim_model_base": 4},
}


def own_nll(model, ids):
    with torch.no_grad():
        return F.cross_entropy(
            model(torch.tensor([ids])).logits[0, :-1].double(), torch.tensor(ids[1:]), reduction="none"
        )


@pytest.mark.parametrize("kind", PLAIN)
def test_fit_and_query_equal_the_models_own_cross_entropy(kind, tmp_path):
    model, rows = tiny_lm(kind), random_rows(20, 31)
    assert not transforms_logits(model.config)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    trainer = LanguageModelTrainer(model, pad_token_id=0, args=args)
    batch = trainer._collate([{"input_ids": row, "prompt_length": 5} for row in rows])
    with torch.no_grad():
        got = trainer.compute_loss(model.eval(), dict(batch))
    asked = token_logprobs(model, padded(rows, 0))
    want = [own_nll(model, row) for row in rows]
    torch.testing.assert_close(got.double(), torch.stack([nll[4:].mean() for nll in want]).mean(), rtol=1e-5, atol=1e-5)
    for values, nll in zip(asked, want, strict=True):
        torch.testing.assert_close(-values[1 : len(nll) + 1].double(), nll, rtol=1e-4, atol=1e-5)


def test_a_heads_bias_is_trained_too(tmp_path):
    model = tiny_lm("phi")
    trainer = LanguageModelTrainer(model, pad_token_id=0, args=TrainingArguments(str(tmp_path), use_cpu=True))
    batch = trainer._collate([{"input_ids": random_rows(20)[0], "prompt_length": 1}])
    trainer.compute_loss(model, dict(batch)).backward()
    got = model.lm_head.bias.grad.clone()
    model.zero_grad()
    model(batch["input_ids"], labels=batch["input_ids"]).loss.backward()
    torch.testing.assert_close(got, model.lm_head.bias.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_transformed_logits_are_asked_of_the_model_and_refused_in_the_fit(kind):
    model, (ids,) = tiny_lm(kind, **TRANSFORMS[kind]), random_rows(20)
    got = token_logprobs(model, padded([ids], 0))[0, 1:]
    torch.testing.assert_close(-got.double(), own_nll(model, ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"{kind} transforms its logits .*sft_weight 0"):
        refuse_transformed_logits(model.config)


def test_a_transform_that_is_off_is_none():
    assert not transforms_logits(tiny_config("gemma2", final_logit_softcapping=None, **NARROW))
    assert not transforms_logits(tiny_config("granite", logits_scaling=1.0))


def test_looking_at_an_architecture_draws_no_random_number():
    state = torch.get_rng_state()
    transforms_logits(tiny_config("llama"))
    assert torch.equal(torch.get_rng_state(), state)


def test_asking_for_logits_leaves_the_model_as_it_was():
    model, (ids,) = tiny_lm("gpt2"), random_rows(9)
    before = own_nll(model, ids)
    with pytest.raises(TypeError), projecting(model) as logits_of:
        logits_of(torch.zeros(()))
    assert torch.equal(own_nll(model, ids), before)
    assert "forward" not in model.transformer.__dict__ and not model.lm_head._forward_hooks


def test_architectures_that_cannot_be_asked_and_models_without_a_head_are_refused():
    with pytest.raises(ValueError, match="cannot tell how bert computes its logits"):
        refuse_transformed_logits(tiny_config("bert", is_decoder=True))
    with pytest.raises(ValueError, match="no causal language model of type t5"):
        refuse_transformed_logits(T5Config())
    with pytest.raises(ValueError, match="no language-model head"):
        lm_head_of(tiny_classifier("llama"))
