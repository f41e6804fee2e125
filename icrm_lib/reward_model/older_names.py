"""A saved model in the words of transformers 4, too."""

import json
from pathlib import Path
from typing import Any


def add_older_names(folder: Path) -> None:
    """Say the same once more in the words of transformers 4, which most evaluation tools still pin.

    Version 4 does not know the tokenizer class of version 5, and would take its default for a rotary base that stands
    under a name it does not read: other scores, without a word.
    """
    file = folder / "tokenizer_config.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    _write(file, tokenizer)
    file = folder / "config.json"
    if file.is_file():
        config = json.loads(file.read_text(encoding="utf-8"))
        rope = config.get("rope_parameters") or {}
        if "rope_theta" in rope:
            config["rope_theta"] = rope["rope_theta"]
            if rope.get("rope_type", "default") != "default":
                config["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
        config["torch_dtype"] = config.get("dtype", "float32")
        _write(file, config)


def _write(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
