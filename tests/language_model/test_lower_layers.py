"""The lower layers of a decoder run apart give what the whole model gives, or the architecture is refused by name."""

import pytest
import torch
from architectures import random_rows, tiny_classifier, tiny_lm

from icrm_lib.language_model.causal import padded
from icrm_lib.language_model.lower_layers import LowerLayers, decoder_layers, keeping_states, refuse_unless_separable

APART = ["llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3", "phi", "phi3", "gpt_neox", "olmo2", "smollm3"]


@pytest.fixture(scope="module")
def batch():
    return padded(random_rows(9, 5, 12), pad_token_id=0)


@pytest.mark.parametrize("kind", APART)
def test_upper_layers_go_on_from_the_states_of_the_lower(kind, batch):
    refuse_unless_separable(tiny_lm(kind, num_key_value_heads=2), 1, batch)


@torch.no_grad()
def test_a_one_label_model_goes_on_from_them_too_and_is_whole_again_after_it(batch):
    model = tiny_classifier("llama")
    with keeping_states(model, 1) as states:
        whole = model(**batch).logits
    lower = LowerLayers(model, 1)
    with lower.left_out(), lower.left_out():  # an evaluation within a training
        lower.give(states[0])
        torch.testing.assert_close(model(**batch).logits, whole)
        lower.give(states[0] * 2)
        assert not torch.allclose(model(**batch).logits, whole)
    torch.testing.assert_close(model(**batch).logits, whole)
    assert lower.states is None and "forward" not in vars(model.model.layers[0])


def test_what_the_embeddings_do_not_hold_is_noticed(batch):
    model = tiny_lm("llama")

    def beside(module, args):  # something beside embeddings and layers, as older decoders have learned positions
        args[0].add_(1.0)

    model.model.rotary_emb.register_forward_pre_hook(beside)
    with pytest.raises(ValueError, match="LlamaModel cannot be run apart.*set frozen_states to none"):
        refuse_unless_separable(model, 1, batch)


@pytest.mark.parametrize("kind", ["gpt2", "bloom"])
def test_decoders_without_a_list_of_layers_are_refused(kind):
    with pytest.raises(ValueError, match="has no list of `layers`.*set frozen_layers to 0"):
        decoder_layers(tiny_lm(kind), 1)


def test_one_layer_at_least_is_left():
    assert len(decoder_layers(tiny_lm("llama"), 1)) == 2
    with pytest.raises(ValueError, match="frozen_layers is 2 and the model has 2 layers.*at most 1"):
        decoder_layers(tiny_lm("llama"), 2)
