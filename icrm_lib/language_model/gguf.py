"""Make a plain directory of a model in a GGUF file: weights in float32 safetensors, the tokenizer as the file says."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.loading import quiet_report
from icrm_lib.tokenization import check_saved_tokenizer, load_tokenizer

MOST_DIFFERENCE = 1e-3  # of the logits of the directory from those of the file
PROBE = "The capital of France is Paris; in 1789 it had about 650,000 people.\n\nDon't you think?"


def convert_gguf(file: str | Path, folder: str | Path) -> None:
    """Write the model and the tokenizer of a GGUF file as a directory that every loader of the kit takes.

    Quantised weights stay what they are worth: they are written out in float32, not made better.

    Args:
        file: the `.gguf` file.
        folder: for the directory; it may be there already.

    Raises:
        ImportError: the package `gguf` is not installed.
        ValueError: a tokenizer whose rules are not known, or a directory that gives other tokens or logits.
    """
    file = Path(file)
    rule, words = _tokenizer_of(file)
    with quiet_report():
        options = {"gguf_file": file.name, "trust_remote_code": False}
        source = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **options).eval()
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), **options)
    tokenizer.backend_tokenizer.pre_tokenizer = rule
    if tokenizer.convert_ids_to_tokens(range(len(words))) != words:
        raise ValueError(
            f"the tokenizer read from {file.name} has another vocabulary than the file; update transformers"
        )
    _plain(source).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    check_saved_tokenizer(tokenizer, folder)
    _check_logits(source, load_tokenizer(folder), folder)


def _tokenizer_of(file: Path) -> tuple[pre_tokenizers.PreTokenizer, list[str]]:
    """Return how a file's tokenizer cuts text before the merges, and its vocabulary, by id.

    `transformers` reads vocabulary and merges of a file, and takes GPT-2's rule whatever rule the file names.
    """
    fields = _fields(file)
    kind, rule = (fields[f"tokenizer.ggml.{key}"] for key in ("model", "pre"))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # llama.cpp's names: https://github.com/ggml-org/llama.cpp, `llama_vocab::impl::load`
    rules = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
    }
    if kind != "gpt2" or rule not in rules:
        raise ValueError(
            f"the tokenizer of {file.name} is of kind {kind!r} and cuts by the rule {rule!r}, and only gpt2 with "
            f"{' or '.join(rules)} is read; add its rule to language_model/gguf.py"
        )
    return rules[rule], fields["tokenizer.ggml.tokens"]


def _fields(file: Path) -> dict[str, Any]:
    try:
        from gguf import GGUFReader  # needed once, by whoever converts a file
    except ImportError as error:
        raise ImportError(
            f"{file.name} is read with the package gguf, which is not installed; run `make real`"
        ) from error
    wanted = {f"tokenizer.ggml.{key}" for key in ("model", "pre", "tokens")}
    found = {key: field.contents() for key, field in GGUFReader(file).fields.items() if key in wanted}
    return dict.fromkeys(wanted) | found


def _plain(source: PreTrainedModel) -> PreTrainedModel:
    """Return a model on the same weights that does not say that they come from a quantised file."""
    own = ("quantization_config", "_model_name_or_path")
    config = type(source.config).from_dict({k: v for k, v in source.config.to_dict().items() if k not in own})
    with torch.device("meta"):
        model = type(source)(config)
    model.load_state_dict(source.state_dict(), assign=True)
    model.tie_weights()
    return model


@torch.no_grad()
def _check_logits(source: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    ids = torch.tensor([tokenizer(PROBE)["input_ids"]])
    written = load_causal_lm(folder, device="cpu")
    difference = (written(input_ids=ids).logits - source(input_ids=ids).logits).abs().max().item()
    if not difference <= MOST_DIFFERENCE:
        raise ValueError(
            f"the logits of {Path(folder).name} differ by {difference:.2g} from those of the file, more than "
            f"{MOST_DIFFERENCE}; remove it and convert again with the locked versions"
        )
