"""Configurations of models, without their weights, and for the profiles' models without a network."""

from dataclasses import asdict
from typing import Any

from transformers import AutoConfig, LlamaConfig, PreTrainedConfig

from icrm_lib import runtime
from icrm_lib.language_model.causal import NO_CODE
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language
from icrm_lib.tokenization import prepare_tokenizer

MADE_HERE = ("testbed", "scratch")
# The architecture part of the public config.json of each model, for machines that have not downloaded it yet.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "google/gemma-2b-it": ("gemma", {
        "hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18, "num_attention_heads": 8,
        "num_key_value_heads": 1, "head_dim": 256, "vocab_size": 256000, "tie_word_embeddings": True,
    }),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    }),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    }),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
    }),
}  # fmt: skip


def model_config(name: str) -> PreTrainedConfig:
    """Return a model's configuration: a directory's, the cache's, that of `ARCHITECTURES`, or the hub's.

    Raises:
        ValueError: it is nowhere; the message says what to do.
    """
    folder = runtime.resolve_path(name)
    path = str(folder) if folder.is_dir() else name
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, **NO_CODE)
    except (OSError, ValueError) as error:
        if folder.is_dir():
            raise ValueError(f"no model in the directory {name!r}: {error}; name one with a config.json") from error
    if name in ARCHITECTURES:
        kind, values = ARCHITECTURES[name]
        return AutoConfig.for_model(kind, **values)
    try:
        return AutoConfig.from_pretrained(name, **NO_CODE)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no configuration of {name!r} on this machine, and the hub did not give it; check the name, run "
            f"`hf download {name} config.json` where there is a network, or add it to ARCHITECTURES in "
            "icrm_lib/plan/models.py"
        ) from error


def base_config(profile: Profile) -> PreTrainedConfig:
    """Return the base model's configuration; for "testbed" and "scratch" as `scratch.small_llama` makes it."""
    settings, vocabulary = profile.base_model, profile.base_model.vocabulary
    if settings.name not in MADE_HERE:
        return model_config(settings.name)
    if settings.name == "testbed":
        vocabulary = len(prepare_tokenizer(Language(**asdict(profile.language)).tokenizer))
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=profile.data.max_length,
        tie_word_embeddings=True,
    )
