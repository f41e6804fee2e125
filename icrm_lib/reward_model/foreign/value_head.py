"""Reward models that others saved as a language model with a value head, as one-label models of ours.

Two layouts are read, safetensors only:

- TRL's and LLaMA-Factory's: a causal language model (or a LoRA adapter of one) and `v_head.summary.weight`,
  `v_head.summary.bias`, in `value_head.safetensors` or among the model's own tensors, there under the prefix
  `pretrained_model.`;
- GRM's (arXiv 2406.10216): the decoder under `model.`, and `v_head.summary.*`: a linear layer, or linear, ReLU, linear.
"""

import logging
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from icrm_lib import runtime
from icrm_lib.language_model.causal import NO_CODE, SAFE, refuse_pickles, saved_tensors
from icrm_lib.reward_model.head import add_mlp_head
from icrm_lib.reward_model.model import RewardModel
from icrm_lib.tokenization import load_tokenizer

logger = logging.getLogger(__name__)

PREFIX = "v_head.summary."


def load_value_head(
    path: str | Path,
    *,
    base_model: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> RewardModel:
    """Load a reward model with a value head; `save_pretrained` then writes a plain one-label directory.

    A one-label head has no bias: the one of a linear value head is dropped and reported. Every reward is then lower by
    that constant, and differences of rewards are what they were.

    Args:
        path: directory or hub id with the value head.
        base_model: directory or hub id of the language model, where `path` holds an adapter or a head alone; what the
            adapter's configuration names when None.
        revision: of the hub id.
        device: "cpu", "cuda", ...; the GPU when one is visible if None.
        dtype: weights' type; float32 if None.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: no value head, or only a pickled one; one of another shape; a head without a model.
    """
    folder = _folder(path, revision)
    tensors = {name: value for name, value in saved_tensors(folder).items() if "lora_" not in name}
    head = {name.rpartition(PREFIX)[2]: value for name, value in tensors.items() if PREFIX in name}
    if not head:
        raise ValueError(_why_no_head(folder))
    body = {name.removeprefix("pretrained_model."): value for name, value in tensors.items() if PREFIX not in name}
    kwargs = {"num_labels": 1, "dtype": dtype or torch.float32}
    is_adapter = (folder / "adapter_config.json").is_file()
    if is_adapter or not body:
        base_model = str(base_model or _named_base(folder))
        refuse_pickles(base_model)
        model = AutoModelForSequenceClassification.from_pretrained(base_model, **SAFE, **kwargs)
        if is_adapter:
            refuse_pickles(folder)
            adapter = PeftConfig.from_pretrained(str(folder))
            adapter.task_type = None  # it names a causal language model, whose decoder has the layers of ours
            model = PeftModel.from_pretrained(model, str(folder), config=adapter).merge_and_unload()
    else:
        model = AutoModelForSequenceClassification.from_config(
            AutoConfig.from_pretrained(str(folder), **NO_CODE, **kwargs)
        )
        decoder = {name.removeprefix("model."): value for name, value in body.items() if name.startswith("model.")}
        model.base_model.load_state_dict(decoder)
        model = model.to(kwargs["dtype"])
    _put_head(model, head)
    has_tokenizer = base_model is None or (folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(folder if has_tokenizer else base_model)
    return RewardModel(model.to(device or runtime.device()), tokenizer)


def _folder(path: str | Path, revision: str | None) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if Path(path).is_absolute():
        raise FileNotFoundError(f"no directory {path}; give a directory or a hub id")
    return Path(snapshot_download(str(path), revision=revision, ignore_patterns=["*.bin", "*.pt", "*.pth"]))


def _why_no_head(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"})
    if pickles:
        return (
            f"{folder} has weights in {', '.join(pickles)}: pickles, which may run any code when read; convert "
            "them where you trust them, with torch.load(..., weights_only=True) and safetensors.torch.save_file"
        )
    return (
        f"no tensor {PREFIX}* in the safetensors files of {folder}: it is no value-head model; load it with "
        "RewardModel.from_pretrained, or give the directory that holds the value head"
    )


def _named_base(folder: Path) -> str:
    config = folder / "adapter_config.json"
    if not config.is_file():
        raise ValueError(f"{folder} holds a value head and no model; name the language model: base_model=...")
    return PeftConfig.from_pretrained(str(folder)).base_model_name_or_path


def _put_head(model, head: dict[str, torch.Tensor]) -> None:
    if "weight" in head:
        if head["weight"].shape != model.score.weight.shape:
            raise ValueError(
                f"the value head maps {tuple(head['weight'].shape)}, the model needs "
                f"{tuple(model.score.weight.shape)}; give the base model that it was trained on"
            )
        model.score.weight.data.copy_(head["weight"])
        if "bias" in head and head["bias"].abs().max() > 0:
            logger.warning("value head: bias %.4g dropped, every reward is lower by it", head["bias"].item())
        return
    if set(head) != {"0.weight", "0.bias", "2.weight", "2.bias"}:
        raise ValueError(f"value head with layers {sorted(head)}: one linear layer, or linear, ReLU, linear are read")
    add_mlp_head(model, len(head["0.weight"]))
    # Ours begins with a dropout layer, so its linear layers are numbers 1 and 3.
    names = {"0": "1", "2": "3"}
    model.score.load_state_dict({names[n.split(".")[0]] + "." + n.split(".")[1]: value for n, value in head.items()})
