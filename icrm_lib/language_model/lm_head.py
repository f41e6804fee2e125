"""From a decoder's last hidden states to logits: the output layer, and what the architecture does beside it."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

# Of the states that stand for a decoder's when logits are compared: large, so that a soft cap shows.
PROBE_SCALE = 50.0


class LMHead(NamedTuple):
    """The output layer of a causal language model: logits = hidden @ weight^T + bias.

    Attributes:
        weight: output embeddings. Shape: (V, H).
        bias: Shape: (V,); None for most architectures (Phi, GPT-J and CodeGen have one).
    """

    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def to(self, device: torch.device | str) -> "LMHead":
        """Return it on another device, cut off from gradients."""
        return LMHead(*(None if part is None else part.detach().to(device) for part in self))


def lm_head_of(causal_lm: PreTrainedModel) -> LMHead:
    """Return the output layer of a causal language model, whatever its name in the architecture.

    Raises:
        ValueError: the model has none.
    """
    module = causal_lm.get_output_embeddings()
    if module is None:
        raise ValueError(f"{type(causal_lm).__name__} has no language-model head; load it as a causal language model")
    return LMHead(module.weight, getattr(module, "bias", None))  # nn.Linear has both, an adapter's wrapper forwards


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Return the causal language model of a configuration without weights (on the meta device).

    Raises:
        ValueError: the architecture has none.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"transformers has no causal language model of type {config.model_type}, so there is no language-model "
            "head to read; choose another model, or generator kind 'base' and sft_weight 0"
        )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), attn_implementation="eager", trust_remote_code=False
        )


class _Decoded(BaseModelOutputWithPast):
    def __getattr__(self, name):  # what else the outputs of an architecture hold: router logits, recurrent states, ...
        return None


@contextmanager
def projecting(causal_lm: PreTrainedModel) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Give the map from last hidden states to logits that the model itself computes: bias, scale, soft cap and all.

    Inside, the model's own forward pass runs with a decoder that returns the given states.

    Args:
        causal_lm: the `transformers` model, without a wrapper.

    Yields:
        a function of states, shape (N, H), whose result is float32 of shape (N, V), differentiable.
    """
    decoder, states = causal_lm.get_decoder(), []
    own = decoder.__dict__.get("forward")  # there only when something has wrapped the module
    decoder.forward = lambda *args, **kwargs: _Decoded(last_hidden_state=states[-1][None])
    hook = causal_lm.get_output_embeddings().register_forward_hook(lambda module, args, logits: logits.float())

    def logits_of(some: torch.Tensor) -> torch.Tensor:
        states.append(some)
        ids = torch.zeros(1, len(some), dtype=torch.long, device=some.device)
        try:
            return causal_lm(input_ids=ids, use_cache=False).logits[0].float()
        finally:
            states.clear()

    try:
        yield logits_of
    finally:
        hook.remove()
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own


def transforms_logits(config: PreTrainedConfig) -> bool:
    """Whether an architecture's logits are more than its output layer's: capped (Gemma 2), scaled (Granite), ...

    Raises:
        ValueError: the architecture has no causal language model, or one that cannot be asked.
    """
    model = skeleton(config)
    rows = lm_head_of(model).weight.shape[0]
    with torch.no_grad():
        # Two hidden units do, as nothing else sees the states. No draw: the seed is the training's.
        layer = torch.nn.utils.skip_init(torch.nn.Linear, 2, rows, bias=False)
        layer.weight.copy_(torch.linspace(-1, 1, 2 * rows).reshape(rows, 2))
        model.set_output_embeddings(layer)
        states = PROBE_SCALE * torch.eye(2)
        try:
            with projecting(model) as logits_of:
                logits = logits_of(states)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(
                f"cannot tell how {config.model_type} computes its logits ({error}); choose another model, or "
                "generator kind 'base' and sft_weight 0"
            ) from error
        plain = F.linear(states, layer.weight)
    return logits.shape != plain.shape or not torch.allclose(logits, plain, rtol=1e-4, atol=1e-3)
