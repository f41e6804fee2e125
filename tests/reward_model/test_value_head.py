"""Checkpoints with a value head, in the layouts that others write, become plain reward models with the same scores."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from icrm_lib.reward_model import RewardModel, load_value_head
from icrm_lib.tokenization import tokenize_conversation


@pytest.fixture(scope="module")
def causal(base_model):
    return AutoModelForCausalLM.from_pretrained(base_model).eval()


@pytest.fixture
def linear():
    torch.manual_seed(1)
    return {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.tensor([0.75])}


@pytest.fixture
def mlp():
    torch.manual_seed(2)
    return {
        "v_head.summary.0.weight": torch.randn(24, 32),
        "v_head.summary.0.bias": torch.randn(24),
        "v_head.summary.2.weight": torch.randn(1, 24),
        "v_head.summary.2.bias": torch.randn(1),
    }


def expected(model, tokenizer, head, conversations):
    """The value head's output at the closing token, by hand."""
    scores = []
    for conversation in conversations:
        ids = torch.tensor([tokenize_conversation(tokenizer, conversation).input_ids])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states[-1][0, -1]
        if "v_head.summary.weight" in head:
            scores.append((head["v_head.summary.weight"] @ hidden + head["v_head.summary.bias"]).item())
        else:
            inner = torch.relu(head["v_head.summary.0.weight"] @ hidden + head["v_head.summary.0.bias"])
            scores.append((head["v_head.summary.2.weight"] @ inner + head["v_head.summary.2.bias"]).item())
    return np.array(scores)


def check(model, want, conversations, folder):
    np.testing.assert_allclose(model.score(conversations), want, atol=1e-4)
    model.save_pretrained(folder)
    np.testing.assert_allclose(RewardModel.from_pretrained(folder).score(conversations), want, atol=1e-4)


def test_a_head_beside_a_base_model(base_model, causal, tokenizer, linear, conversations, tmp_path):
    save_file(linear, tmp_path / "value_head.safetensors")
    model = load_value_head(tmp_path, base_model=base_model)
    check(model, expected(causal, tokenizer, linear, conversations), conversations, tmp_path / "ours")


@pytest.mark.parametrize("named", [True, False])
def test_a_head_beside_an_adapter(base_model, tokenizer, linear, conversations, tmp_path, named):
    """The adapter's configuration names the base model, whose tokenizer it has where there is none beside it."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base_model), lora).eval()
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.2)
    adapted.save_pretrained(tmp_path)
    save_file(linear, tmp_path / "value_head.safetensors")
    model = load_value_head(tmp_path, base_model=base_model if named else None)
    want = expected(adapted, tokenizer, linear, conversations)
    plain = expected(AutoModelForCausalLM.from_pretrained(base_model), tokenizer, linear, conversations)
    assert np.abs(want - plain).max() > 0.1
    check(model, want, conversations, tmp_path / "ours")


@pytest.mark.parametrize("layout", ["trl", "grm"])
def test_a_head_among_the_tensors_of_the_model(causal, tokenizer, linear, mlp, conversations, tmp_path, layout):
    if layout == "trl":
        head, tensors = linear, {f"pretrained_model.{name}": value for name, value in causal.state_dict().items()}
        tensors.pop("pretrained_model.lm_head.weight", None)
    else:
        head, tensors = mlp, {f"model.{name}": value for name, value in causal.model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in tensors.items()} | head, tmp_path / "model.safetensors")
    causal.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    check(load_value_head(tmp_path), expected(causal, tokenizer, head, conversations), conversations, tmp_path / "o")


def test_pickles_are_refused_and_other_faults_are_named(base_model, linear, mlp, tmp_path):
    torch.save(linear, tmp_path / "value_head.bin")
    with pytest.raises(ValueError, match=r"value_head.bin: pickles.*weights_only=True"):
        load_value_head(tmp_path, base_model=base_model)
    with pytest.raises(ValueError, match="score.weight is missing for Llama.*would be drawn at random"):
        load_value_head(base_model)
    with pytest.raises(FileNotFoundError, match="no directory"):
        load_value_head(tmp_path / "nothing")
    alone = tmp_path / "alone"
    alone.mkdir()
    save_file(linear, alone / "value_head.safetensors")
    with pytest.raises(ValueError, match="base_model="):
        load_value_head(alone)
    save_file({"v_head.summary.weight": torch.ones(1, 31)}, alone / "value_head.safetensors")
    with pytest.raises(ValueError, match=r"maps \(1, 31\), the model has hidden states of 32"):
        load_value_head(alone, base_model=base_model)
    save_file({name: mlp[name] for name in list(mlp)[:2]}, alone / "value_head.safetensors")
    with pytest.raises(ValueError, match="v_head.summary has the tensors 0.bias, 0.weight"):
        load_value_head(alone, base_model=base_model)
