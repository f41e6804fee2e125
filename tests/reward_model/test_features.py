"""Features: hidden states of chosen layers and positions, as plain transformers gives them row by row."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from icrm_lib.language_model.causal import lora_config
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.reward_model.features import kept_features
from tests.reward_model.test_scoring import CONFIGS

KEY = {"model": "tiny"}
OPTIONS = {"key": KEY, "pad_token_id": 0}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [rng.integers(1, 120, length).tolist() for length in (9, 30, 3, 21, 30, 1)]


def built(kind, of=AutoModelForCausalLM):
    torch.manual_seed(0)
    return of.from_config(CONFIGS[kind]).eval()


def plain(model, row):
    """(T, layers, H) of one row alone."""
    with torch.no_grad():
        hidden = model(torch.tensor([row]), output_hidden_states=True, use_cache=False).hidden_states
    return torch.stack(hidden, 2)[0].numpy()


@pytest.mark.parametrize("of", [AutoModelForCausalLM, AutoModelForSequenceClassification])
@pytest.mark.parametrize("kind", list(CONFIGS))
def test_states_are_those_of_each_row_alone(kind, of, rows, tmp_path):
    model = built(kind, of)
    found = kept_features(model, rows, [0, 2, -1], tmp_path, tokens_per_batch=70, **OPTIONS)
    assert isinstance(found.states, np.memmap) and found.states.dtype == np.float32
    for i, row in enumerate(rows):
        want = plain(model, row)
        assert found.of(i).shape == (len(row), 3, want.shape[-1])
        np.testing.assert_allclose(found.of(i), want[:, [0, 2, -1]], atol=1e-5)
        assert found.of(i).std() > 0.01


def test_chosen_positions_alone_are_kept(rows, tmp_path):
    model = built("llama")
    positions = [[len(row) - 1, 0] if len(row) > 1 else [] for row in rows]
    found = kept_features(model, rows, [1], tmp_path, positions=positions, **OPTIONS)
    assert found.states.shape[0] == 10 and found.of(5).shape[0] == 0
    for i, row in enumerate(rows[:5]):
        np.testing.assert_allclose(found.of(i)[:, 0], plain(model, row)[[-1, 0], 1], atol=1e-5)


def test_they_are_computed_once_and_anew_where_anything_differs(rows, tmp_path, monkeypatch):
    model, passes = built("llama"), []
    model.model.register_forward_hook(lambda *_: passes.append(1))

    def asked(rows=rows, layers=(1,), key=KEY, **options):
        before = len(passes)
        kept_features(model, rows, layers, tmp_path, key, pad_token_id=0, **options)
        return len(passes) > before

    assert asked() and not asked()
    assert asked(rows=rows[:4]) and asked(layers=[2]) and asked(key={"model": "other"}) and asked(dtype="float16")
    assert asked(positions=[[0]] * 6) and not asked() and not asked(layers=[-3])


def test_half_of_the_disk_and_what_does_not_fit_it(rows, tmp_path):
    model = built("llama")
    half = kept_features(model, rows, [2], tmp_path, dtype="float16", **OPTIONS)
    assert half.states.dtype == np.float16
    np.testing.assert_allclose(half.of(1)[:, 0], plain(model, rows[1])[:, 2], rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1e8)
    with pytest.raises(FloatingPointError, match="row .* not finite in float16; set dtype to float32"):
        kept_features(model, rows, [0], tmp_path, {"model": "large"}, pad_token_id=0, dtype="float16")
    assert not [path for path in tmp_path.glob("features-*") if len(list(path.iterdir())) != 3]


def test_an_adapter_counts(rows, tmp_path):
    model = get_peft_model(built("llama"), lora_config(RewardModelSettings(lora_rank=2, lora_alpha=4))).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.add_(0.5)
    found = kept_features(model, rows[:2], [2], tmp_path, **OPTIONS)
    np.testing.assert_allclose(found.of(0)[:, 0], plain(model, rows[0])[:, 2], atol=1e-5)
    assert np.abs(found.of(0)[:, 0] - plain(built("llama"), rows[0])[:, 2]).max() > 1e-2


def test_what_is_not_there_is_refused(rows, tmp_path):
    model = built("llama")
    for layers in ([4], [-5], []):
        with pytest.raises(ValueError, match=r"give at least one of 0 \(the embeddings\) to 3, or of -4 to -1"):
            kept_features(model, rows, layers, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="positions .* of row 0 are not all inside its 9 tokens"):
        kept_features(model, rows, [1], tmp_path, positions=[[9], *[[0]] * 5], **OPTIONS)
    with pytest.raises(ValueError, match="6 rows and 1 lists of positions, 1 in all"):
        kept_features(model, rows, [1], tmp_path, positions=[[0]], **OPTIONS)
    with pytest.raises(ValueError, match="dtype is 'bfloat16'"):
        kept_features(model, rows, [1], tmp_path, dtype="bfloat16", **OPTIONS)
