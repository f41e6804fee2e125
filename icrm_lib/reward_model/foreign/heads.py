"""Reward heads as training tools name them: a linear layer to one number, or linear, ReLU, linear.

| name | who writes it |
|---|---|
| `score` | transformers, TRL; `score.0`, `score.2`: Qwen2.5-Math-RM; `score.1`, `score.3`: this kit |
| `value_head`, or what `value_head_prefix` says | OpenRLHF, with `mean` and `std` of its rewards |
| `v_head.summary` | TRL's value heads, LLaMA-Factory (`value_head.safetensors`); with `.0`, `.2` GRM (2406.10216) |
| `v_head` | Starling, InternLM2 |
| `regression_head` | Eurus (2404.02078) |
| `regression_layer` | ArmoRM's family (2406.12845), without its gating |
| `classifier` | one-label token classification of GPT-2, GPT-NeoX, Bloom, ... |
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from icrm_lib.reward_model.foreign.names import plain
from icrm_lib.reward_model.head import add_linear_head, add_mlp_head

_NAMES = ("score", "value_head", "v_head.summary", "v_head", "regression_head", "regression_layer", "classifier")
# Those of transformers are read at the last token that is not padding; the others at the last token of the text.
_OF_TRANSFORMERS = ("score", "classifier")


@dataclass(frozen=True)
class FoundHead:
    """A reward head among the tensors of a checkpoint.

    Attributes:
        name: as in the table above.
        tensors: name in the files by name inside the head, e.g. {"weight": "module.v_head.summary.weight"}.
        shapes: of the tensors, by name inside the head.
        by_mask: whether its tool reads it at the last token of the text, whatever it is; transformers reads at the last
            one that is not padding.
    """

    name: str
    tensors: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    by_mask: bool = False

    @property
    def layers(self) -> int:
        """Number of linear layers."""
        return sum(part.endswith("weight") for part in self.tensors)

    @property
    def beside_model(self) -> bool:
        """Whether it is a head that other tools keep beside the model, not a module of it."""
        return self.name not in _OF_TRANSFORMERS


def head_of(shapes: Mapping[str, tuple[int, ...]], config: PreTrainedConfig | None = None) -> FoundHead | None:
    """Find the reward head among the tensors of a checkpoint.

    Args:
        shapes: by name.
        config: of the model; its `value_head_prefix` is a name, too.

    Raises:
        ValueError: there are two heads, or one that gives several values a token or is neither a linear layer nor
            linear, ReLU, linear.
    """
    values = config.to_dict() if config is not None else {}
    own, is_openrlhf = values.get("value_head_prefix"), "value_head_prefix" in values or "normalize_reward" in values
    names = sorted({*_NAMES, own} - {None}, key=len, reverse=True)
    pattern = re.compile(rf"(?:^|\.)({'|'.join(map(re.escape, names))})\.((?:\d+\.)?(?:weight|bias))$")
    found: dict[str, FoundHead] = {}
    for tensor, shape in shapes.items():
        if (match := pattern.search(plain(tensor))) and ".layers." not in tensor and ".h." not in tensor:
            by_mask = is_openrlhf or match[1] not in _OF_TRANSFORMERS
            head = found.setdefault(match[1], FoundHead(match[1], {}, {}, by_mask))
            head.tensors[match[2]], head.shapes[match[2]] = tensor, shape
    if not found:
        return None
    if len(found) > 1:
        raise ValueError(
            f"there are {len(found)} reward heads, {' and '.join(sorted(found))}; keep the one that is meant"
        )
    (head,) = found.values()
    _check(head)
    return head


def put_head(model: PreTrainedModel, head: FoundHead, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give a one-label model a head that was found, biases included; changed in place.

    Args:
        model: with any head.
        head: of `head_of`.
        tensors: the checkpoint's, by name.

    Raises:
        ValueError: the head is for another width.
    """
    values = {part: tensors[name] for part, name in head.tensors.items()}
    first = values[min(part for part in values if part.endswith("weight"))]
    width = model.config.get_text_config().hidden_size
    if first.shape[-1] != width:
        raise ValueError(
            f"the reward head maps {tuple(first.shape)}, the model has hidden states of {width}; give the base model "
            "that it was trained on"
        )
    if head.layers == 1:
        add_linear_head(model, bias="bias" in values)
    else:
        add_mlp_head(model, len(first))
        # Ours begins with a dropout layer, so its linear layers are numbers 1 and 3.
        numbers = dict(zip(sorted({part.split(".")[0] for part in values}), "13", strict=True))
        values = {f"{numbers[part.split('.')[0]]}.{part.split('.')[1]}": value for part, value in values.items()}
    model.score.load_state_dict(values)
    if head.by_mask:
        model.config.get_text_config().pad_token_id = None  # read at the last token, whatever it is


def fold_normalisation(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put OpenRLHF's normalisation of rewards, (r - mean) / std, into the head.

    `normalize_reward` in the configuration says whether it is used; `mean` and `std` stand there or among the tensors.
    """
    values = model.config.to_dict()
    if not values.get("normalize_reward"):
        return
    given = {plain(name): value.item() for name, value in tensors.items() if plain(name) in ("mean", "std")}
    mean, std = (given.get(name, values.get(name)) for name in ("mean", "std"))
    if mean is None or std is None or not std > 0:
        raise ValueError(
            f"normalize_reward is set, and mean is {mean}, std is {std}; give both, std > 0, or set normalize_reward "
            "to false in config.json"
        )
    last = model.score if isinstance(model.score, torch.nn.Linear) else model.score[-1]
    bias = torch.zeros(1, dtype=last.weight.dtype) if last.bias is None else last.bias.data
    last.weight.data /= std
    last.bias = torch.nn.Parameter((bias - mean) / std)
    model.config.normalize_reward = False  # it is in the head now
    for name in ("mean", "std"):
        model.config.__dict__.pop(name, None)


def _check(head: FoundHead) -> None:
    weights = sorted(part for part in head.tensors if part.endswith("weight"))
    layers = {part.rpartition(".")[0] for part in head.tensors}
    known = layers in ({""}, {"0", "2"}, {"1", "3"})
    if not known or len(weights) != len(layers) or (len(layers) == 2 and len(head.tensors) != 4):
        raise ValueError(
            f"the reward head {head.name} has the tensors {', '.join(sorted(head.tensors))}; one linear layer, or "
            "linear, ReLU, linear (numbers 0 and 2) are read"
        )
    values = head.shapes[weights[-1]][0]
    if values != 1:
        raise ValueError(
            f"the reward head {head.name} gives {values} values a token; a reward model gives one (a classifier of "
            "several labels, a process reward model's two or ArmoRM's gated objectives are none)"
        )
