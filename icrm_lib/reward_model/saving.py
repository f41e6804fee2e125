"""Write a reward model so that other tools read the same: a plain directory, older names, ids that stay."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers import Qwen2ForSequenceClassification as Qwen2

from icrm_lib.reward_model.head import reward_head
from icrm_lib.tokenization import check_saved_tokenizer, misread_by_auto

logger = logging.getLogger(__name__)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer, and see that it gives the same ids when it is loaded.

    Raises:
        ValueError: it does not.
    """
    tokenizer.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":  # version 4 of transformers does not know the name
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    _write(file, config)
    check_saved_tokenizer(tokenizer, folder)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a whole model with its tokenizer.

    `AutoTokenizer` takes the tokenizer of every `qwen2` directory for Qwen's own, whatever `tokenizer.json` says. Where
    that changes ids, the model is written as the Llama that it is but for the name (biases in the attention, zero at
    its output), so that every tool gives the scores that were trained.
    """
    head = reward_head(model)
    if isinstance(head, torch.nn.Linear) and head.bias is not None and head.bias.abs().item() > 0:
        logger.warning(
            "the reward head has a bias of %.4g, which other tools leave out: their scores are all lower by it, and "
            "differences of scores the same",
            head.bias.item(),
        )
    model.save_pretrained(str(folder))
    save_tokenizer(tokenizer, folder)
    if (auto := misread_by_auto(tokenizer, folder)) and (llama := _as_llama(model)):
        for file in folder.glob("*.safetensors*"):
            file.unlink()
        llama.save_pretrained(str(folder))
        auto = misread_by_auto(tokenizer, folder)
    if auto:
        logger.warning(
            "AutoTokenizer takes the saved tokenizer for a %s, which cuts texts otherwise than tokenizer.json says: "
            "tools that load it so give other scores than RewardModel does",
            auto,
        )
    _add_older_names(folder / "config.json")


def _as_llama(model: PreTrainedModel) -> PreTrainedModel | None:
    """Return a Qwen 2 reward model under Llama's name, on the same weights; None where it is none or more than that."""
    config = model.config
    plain = isinstance(model, Qwen2) and isinstance(model.score, torch.nn.Linear) and model.score.bias is None
    if not plain or config.use_sliding_window:
        return None
    own = {"model_type", "architectures", "layer_types", "use_sliding_window", "sliding_window", "max_window_layers"}
    values = {name: value for name, value in config.to_dict().items() if name not in own}
    with torch.device("meta"):
        llama = LlamaForSequenceClassification(LlamaConfig(**values, attention_bias=True))
    weights = model.state_dict()
    for name in llama.state_dict().keys() - weights.keys():  # the biases of the attention's output
        weights[name] = torch.zeros(config.hidden_size, dtype=model.dtype, device=model.device)
    llama.load_state_dict(weights, assign=True)
    return llama


def _add_older_names(file: Path) -> None:
    """Say the same once more in the words of transformers 4, which most evaluation tools still pin.

    It would take its default for a rotary base that stands under a name it does not read: other scores, without a word.
    """
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
