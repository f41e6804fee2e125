"""The head of a reward model: find it, read what passes through it, replace it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from icrm_lib.language_model.causal import without_adapter


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


def add_linear_head(model: PreTrainedModel, *, bias: bool) -> PreTrainedModel:
    """Give a one-label sequence classification model a linear head to 1.

    Args:
        model: changed in place, and returned.
        bias: with a bias, which `RewardModel.from_pretrained` reads and other tools leave out.
    """
    hidden = model.config.get_text_config().hidden_size
    model.score = torch.nn.Linear(hidden, 1, bias=bias, device=model.device, dtype=model.dtype)
    return model


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
