"""The head of a reward model: find it, read what passes through it, replace it, load it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers
from peft import AutoPeftModelForSequenceClassification, PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from icrm_lib.language_model.causal import NO_CODE, SAFE, refuse_pickles, saved_tensors, without_adapter


@dataclass
class HeadOutput:
    """What passed through the reward head in one forward pass.

    Attributes:
        hidden: the backbone's last hidden states. Shape: (N, T, H).
        rewards: the head's output at every position. Shape: (N, T).
    """

    hidden: torch.Tensor | None = None
    rewards: torch.Tensor | None = None


def reward_head(model: torch.nn.Module) -> torch.nn.Module:
    """Return the head (`score`) of a one-label sequence classification model, PEFT-wrapped or not.

    Raises:
        ValueError: the architecture reads its reward otherwise than by a `score` layer on every position.
    """
    inner = without_adapter(model)
    head = dict(inner.named_children()).get("score")
    if head is None:
        raise ValueError(
            f"{type(inner).__name__} has no `score` layer on every position, so it has no token rewards; use a decoder "
            "architecture with AutoModelForSequenceClassification (Llama, Gemma, Qwen, Mistral, ...)"
        )
    return head


def add_mlp_head(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """Give a one-label sequence classification model GRM's head: dropout 0.1, linear to `size`, ReLU, linear to 1.

    The checkpoint is then no plain one-label directory any more: `RewardModel.from_pretrained` reads it, other tools
    would find no `score.weight` and start from a random one. Configuration key: `mlp_head_size`.

    Args:
        model: changed in place, and returned.
        size: width of the hidden layer.
    """
    hidden = model.config.get_text_config().hidden_size
    layers = [torch.nn.Dropout(0.1), torch.nn.Linear(hidden, size), torch.nn.ReLU(), torch.nn.Linear(size, 1)]
    model.score = torch.nn.Sequential(*layers).to(device=model.device, dtype=model.dtype)
    model.config.mlp_head_size = size
    return model


def load_classifier(path: str, **kwargs) -> PreTrainedModel:
    """Load a whole one-label model, with a linear head or an MLP.

    Args:
        path: local directory or hub id.
        kwargs: of `from_pretrained`.
    """
    refuse_pickles(path)
    size = getattr(AutoConfig.from_pretrained(path, **NO_CODE), "mlp_head_size", None)
    if size is None:
        return AutoModelForSequenceClassification.from_pretrained(path, **SAFE, **kwargs)
    model = _fresh_mlp(path, size, **kwargs)
    model.score.load_state_dict(_saved_head(path))
    return model


def load_adapter(path: str, **kwargs) -> PreTrainedModel:
    """Load an adapter and its base model as one.

    Args:
        path: local directory of the adapter; its configuration names the base model.
        kwargs: of the base model's `from_pretrained`.
    """
    base = PeftConfig.from_pretrained(path).base_model_name_or_path
    for folder in (path, base):
        refuse_pickles(folder)
    head = _saved_head(path)
    if "1.weight" not in head:
        return AutoPeftModelForSequenceClassification.from_pretrained(path, **SAFE, **kwargs).merge_and_unload()
    model = _fresh_mlp(base, len(head["1.weight"]), **kwargs)  # PEFT knows linear heads only: it must find ours
    return PeftModel.from_pretrained(model, path).merge_and_unload()


def _fresh_mlp(path: str, size: int, **kwargs) -> PreTrainedModel:
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it would report a missing linear head, and ours as unexpected
    try:
        return add_mlp_head(AutoModelForSequenceClassification.from_pretrained(path, **SAFE, **kwargs), size)
    finally:
        transformers.logging.set_verbosity(level)


def _saved_head(path: str) -> dict[str, torch.Tensor]:
    """Return the head's tensors of a local directory, by their names inside the head."""
    return {name.rpartition("score.")[2]: value for name, value in saved_tensors(path, "score.").items()}


@contextmanager
def capture_head(model: torch.nn.Module) -> Iterator[HeadOutput]:
    """Collect hidden states and token rewards of the next forward pass of `model` or of any wrapper around it.

    `transformers` computes the reward at every position and then keeps one. A hook on the head sees them all, with
    their gradient, while the call itself still goes through DDP, FSDP, PEFT or a compiled wrapper.
    """
    output = HeadOutput()

    def keep(module, args, result):
        output.hidden, output.rewards = args[0], result.squeeze(-1)

    hook = reward_head(model).register_forward_hook(keep)
    try:
        yield output
    finally:
        hook.remove()
