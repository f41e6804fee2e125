"""Tiny random models of many architectures, as other people's checkpoints have them; nothing is downloaded."""

import copy
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

VOCABULARY, POSITIONS = 60, 256

_THETA = {"rope_theta": 10000.0}
_ORIGINAL = {**_THETA, "factor": 4.0, "original_max_position_embeddings": 64}
ROPES = {  # `rope_parameters` of every type, for heads of 8
    "default": {"rope_type": "default", **_THETA},
    "linear": {"rope_type": "linear", "factor": 4.0, **_THETA},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, **_THETA},
    "yarn": {"rope_type": "yarn", **_ORIGINAL},
    "llama3": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_ORIGINAL},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0], **_ORIGINAL},
}

_SIZE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
_NO_LIMIT = {"hidden_size": 16, "n_layer": 2, "n_head": 2}
_OWN = {  # of the architectures whose configuration has names of its own
    "gpt2": _GPT,
    "gptj": {**_GPT, "rotary_dim": 4},
    "codegen": {**_GPT, "rotary_dim": 4, "n_head": 4},
    "opt": {
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
        "max_position_embeddings": POSITIONS,
    },
    "gpt_neo": {
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
        "intermediate_size": 24,
        "max_position_embeddings": POSITIONS,
    },
    "bloom": _NO_LIMIT,
    "mamba": {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": POSITIONS},
    "falcon": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
}


def tiny_config(kind: str, **changes: Any) -> PreTrainedConfig:
    """Return a configuration of two narrow layers.

    Args:
        kind: `model_type` of `transformers`.
        changes: entries to add or change.
    """
    own = _OWN.get(kind, {**_SIZE, "max_position_embeddings": POSITIONS})
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = CONFIG_MAPPING[kind](**{"vocab_size": VOCABULARY, **ids, **own, **copy.deepcopy(changes)})
    config.initializer_range = 0.2  # wide enough that what a test compares differs
    return config


def tiny_lm(kind: str, **changes: Any) -> PreTrainedModel:
    """Return a causal language model; the bias of its head, where it has one, is large."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).eval()
    bias = getattr(model.get_output_embeddings(), "bias", None)
    if bias is not None:
        with torch.no_grad():
            bias.normal_(std=2.0)
    return model


def tiny_classifier(kind: str, **changes: Any) -> PreTrainedModel:
    """Return a one-label sequence classification model."""
    torch.manual_seed(0)
    config = tiny_config(kind, **changes)
    config.num_labels = 1
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        model.score.weight.normal_(std=0.5)
    return model


def random_rows(*lengths: int) -> list[list[int]]:
    """Return rows of token ids without padding, one of each length."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
