"""Names of tensors as training tools leave them, brought to those of `transformers`."""

from collections.abc import Iterable

from transformers import PreTrainedModel

# What DistributedDataParallel, torch.compile, FSDP and activation checkpointing put into the names of what they wrap.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_LM_HEADS = ("lm_head.", "embed_out.")


def plain(name: str) -> str:
    """Return a tensor's name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def body_names(names: Iterable[str], skeleton: PreTrainedModel, head: Iterable[str]) -> dict[str, str] | None:
    """Return the decoder's tensors by the names that the model has for them.

    Where its decoder begins is told by the name of the input embeddings: `module.model.embed_tokens.weight`,
    `pretrained_model.transformer.wte.weight` or a bare `embed_tokens.weight` say what stands before every other name.

    Args:
        names: of all tensors.
        skeleton: the model, with or without weights.
        head: names of the reward head's tensors, which are left out.

    Returns:
        old name by new name; None where all are already as the model has them.

    Raises:
        ValueError: there are no input embeddings, or tensors beside decoder and heads.
    """
    head = set(head)
    kept = {name: plain(name) for name in names if name not in head}
    embeddings = skeleton.get_input_embeddings()
    (own,) = (name for name, module in skeleton.named_modules() if module is embeddings)
    prefix = f"{skeleton.base_model_prefix}."
    anchor = f"{own.removeprefix(prefix)}.weight"
    found = sorted((new for new in kept.values() if new == anchor or new.endswith(f".{anchor}")), key=len)
    if not found:
        raise ValueError(
            f"no input embeddings ({anchor}) among the weights of this {skeleton.config.model_type}; give the "
            "directory of the whole model"
        )
    given = found[0].removesuffix(anchor)
    result = {prefix + new.removeprefix(given): old for old, new in kept.items() if new.startswith(given)}
    parts = {name.removeprefix(prefix).split(".")[0] for name in skeleton.state_dict() if name.startswith(prefix)}
    beside = [
        new
        for new in kept.values()
        if not (new.startswith(given) and new.removeprefix(given).split(".")[0] in parts) and not _is_left_out(new)
    ]
    result = {new: old for new, old in result.items() if not _is_lm_head(new.removeprefix(prefix))}
    if beside:
        raise ValueError(
            f"the weights hold {beside[0]!r} beside decoder and reward head; a reward that it takes part in is no "
            "linear layer or MLP on the last hidden state, so this model is not read"
        )
    unchanged = all(new == old for new, old in result.items()) and not any(name != new for name, new in kept.items())
    return None if unchanged else result


def _is_left_out(name: str) -> bool:
    """Whether a tensor outside the decoder changes no reward: a language-model head, a buffer of positions."""
    return _is_lm_head(name) or name.endswith(("inv_freq", "position_ids"))


def _is_lm_head(name: str) -> bool:
    return name.startswith(_LM_HEADS) or any(f".{head}" in name for head in _LM_HEADS)
