"""The smallest profile and the smallest models that go the whole way; made here, nothing is downloaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from icrm_lib.language_model.scratch import scratch_tokenizer
from icrm_lib.profiles import BaseModelSettings, DataSettings, GeneratorSettings, Profile, RewardModelSettings

LORA = {"lora_rank": 2, "lora_alpha": 4, "batch_size": 12, "epochs": 1.0}


def micro(name: str = "micro", **sections: dict[str, Any]) -> Profile:
    """Return a profile whose every artefact takes a second.

    Args:
        name: of the profile, and of the folders under `runs/` and `results/`.
        sections: settings to change, e.g. `data={"train_pairs": 12}`.
    """
    profile = Profile(
        name=name,
        data=DataSettings(train_pairs=24, validation_pairs=6, test_pairs=8, max_length=256),
        base_model=BaseModelSettings(hidden_size=16, layers=1, heads=2, vocabulary=400, steps=3, batch_size=8),
        generator=GeneratorSettings(**LORA),
        reward_model=RewardModelSettings(**LORA, sft_weight=0.01),
    )
    changed = {section: replace(getattr(profile, section), **values) for section, values in sections.items()}
    return replace(profile, **changed)


def micro_grid() -> Profile:
    """Return the profile for cells of the lab: words that are held out, and pairs enough to measure something."""
    sizes = {"validation_pairs": 30, "test_pairs": 40}
    return micro("micro_grid", language={"held_out_verbs": 0.25}, data=sizes, reward_model={"mlp_size": 8})


# 48 times prompt, better answer, worse answer.
TEXTS = [
    text
    for number in range(48)
    for text in (
        f"Which month is number {number % 12 + 1}? Réponse courte 😀",
        f"It is the one after number {number % 12}, and {number} is my lucky number.",
        f"No idea, ask {number} others!\n\nOr do not.",
    )
]
GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _gemma_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.chat_template = GEMMA_TURNS


def _chatml(tokenizer: PreTrainedTokenizerBase) -> None:
    """As Qwen ships it: no BOS, and the pad token is not the closing token."""
    tokenizer.bos_token = None
    tokenizer.add_special_tokens(
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra_special_tokens": ["<|im_start|>"]}
    )
    tokenizer.chat_template = CHATML


# family: (configuration class, its own arguments, what makes the tokenizer's template)
FAMILIES = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False}, lambda tokenizer: None),
    "gemma": (GemmaConfig, {"head_dim": 16, "num_key_value_heads": 1}, _gemma_turns),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True, "num_key_value_heads": 1}, _chatml),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": False, "head_dim": 16, "num_key_value_heads": 1}, _chatml),
}


def save_tiny(family: str, folder: Path) -> None:
    """Write a random-weight causal model of a family of `FAMILIES`, with a tokenizer made from `TEXTS`."""
    config_class, own, template = FAMILIES[family]
    tokenizer = scratch_tokenizer(TEXTS, 400)
    template(tokenizer)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    # More rows than tokens, as many checkpoints have; larger weights than usual, for outputs that differ.
    config = config_class(vocab_size=len(tokenizer) + 8, initializer_range=0.2, **size, **ids, **own)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
