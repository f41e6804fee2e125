"""The lower layers of a decoder, run apart: their hidden states taken from a pass, and given to the layers above."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from icrm_lib.language_model.causal import without_adapter

# Of the upper layers' result from stored states against that of the whole model, relative to its largest value. A pass
# of other rows at a time differs by 1e-6, an architecture whose lower part is more than embeddings and layers by 1.
MOST_DIFFERENCE = 1e-3


def decoder_layers(model: torch.nn.Module, count: int) -> list[torch.nn.Module]:
    """Return the layers of a model's decoder, lowest first, after a look whether `count` of them can be frozen.

    Args:
        model: causal or one-label, PEFT-wrapped or not.
        count: number of frozen layers, >= 1.

    Raises:
        ValueError: the decoder has no list of `layers`, or none would be left to train.
    """
    decoder = without_adapter(model).base_model
    layers = dict(decoder.named_children()).get("layers")
    if not isinstance(layers, torch.nn.ModuleList):
        raise ValueError(
            f"{type(decoder).__name__} has no list of `layers`, so its lower ones cannot be frozen; set frozen_layers "
            "to 0 or take another architecture (Llama, Gemma, Qwen, Mistral, ...)"
        )
    if count >= len(layers):
        raise ValueError(
            f"frozen_layers is {count} and the model has {len(layers)} layers, so none would be trained; give at most "
            f"{len(layers) - 1}, or set frozen_backbone to train the head alone"
        )
    return list(layers)


@contextmanager
def keeping_states(model: torch.nn.Module, count: int) -> Iterator[list[torch.Tensor]]:
    """Collect what the lower layers of a model give in its next forward passes.

    Args:
        model: see `decoder_layers`.
        count: how many layers are lower ones, >= 1.

    Yields:
        a list that each forward pass adds its hidden states to. Shape of each: (N, T, H).
    """
    states: list[torch.Tensor] = []
    last = decoder_layers(model, count)[count - 1]
    hook = last.register_forward_hook(lambda module, args, out: states.append(_states_of(out)))
    try:
        yield states
    finally:
        hook.remove()


class LowerLayers:
    """The embeddings and lower layers of a model, to be left out where their states are known.

    The model stays whole: names, number of layers and what each of them is. Inside `left_out` the embeddings answer
    with the states that `give` was given last, whatever ids they are asked for, and the lower layers pass them on.

    Args:
        model: see `decoder_layers`; its lower part must be without adapters and dropout.
        count: how many layers are lower ones, >= 1.

    Raises:
        ValueError: see `decoder_layers`.
    """

    def __init__(self, model: torch.nn.Module, count: int):
        self.layers = decoder_layers(model, count)[:count]
        self.embeddings = without_adapter(model).get_input_embeddings()
        self.states: torch.Tensor | None = None

    def give(self, states: torch.Tensor) -> None:
        """Set the hidden states of the next forward pass, in any floating type. Shape: (N, T, H)."""
        self.states = states.to(self.embeddings.weight.dtype)

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """Leave them out of every forward and backward pass in the block."""
        own = {module: module.__dict__.get("forward") for module in (self.embeddings, *self.layers)}
        self.embeddings.forward = lambda *args, **kwargs: self.states
        for layer in self.layers:
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
        try:
            yield
        finally:
            self.states = None
            for module, forward in own.items():
                if forward is None:
                    del module.forward
                else:
                    module.forward = forward


@torch.no_grad()
def refuse_unless_separable(model: PreTrainedModel, count: int, inputs: dict[str, torch.Tensor]) -> None:
    """Raise where the upper layers, started from the lower ones' states, do not give what the whole model gives.

    Args:
        model: in evaluation mode; see `decoder_layers`.
        count: how many layers are lower ones, >= 1.
        inputs: `input_ids` and `attention_mask` of a few rows. Shape of each: (N, T).

    Raises:
        ValueError: names the architecture and the remedy.
    """
    decoder = without_adapter(model).base_model
    with keeping_states(model, count) as states:
        whole = decoder(**inputs, use_cache=False)[0]
    lower = LowerLayers(model, count)
    try:
        with lower.left_out():
            lower.give(states[0])
            upper = decoder(**inputs, use_cache=False)[0]
        seen = inputs["attention_mask"].bool()
        difference = ((upper - whole)[seen].abs().max() / whole[seen].abs().max()).item()
        fault = (
            None if difference <= MOST_DIFFERENCE else f"the results differ by {difference:.2g} of the largest value"
        )
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        fault = f"{type(error).__name__}: {error}"
    if fault:
        raise ValueError(
            f"the lower layers of {type(decoder).__name__} cannot be run apart from the others ({fault:.200}); train "
            "without keeping their states: set frozen_states to none"
        )


def _states_of(output: Any) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output[0]
