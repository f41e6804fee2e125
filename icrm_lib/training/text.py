"""The text term: log-probabilities of responses through the frozen language-model head."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.utils.hub import cached_file

from icrm_lib.language_model.causal import refuse_transformed_logits, token_nll
from icrm_lib.language_model.lm_head import LMHead, lm_head_of, skeleton
from icrm_lib.language_model.loading import NO_CODE
from icrm_lib.objectives import grm_text_loss
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.loss import Batch

# Tokens times vocabulary whose logits may exist at once (16 MiB): one call for all responses then saves the fixed costs
# of one for each.
MOST_LOGITS = 2**22


def reads_rejected(args: ICRMConfig) -> bool:
    """Whether the text term reads the rejected responses too."""
    return args.text_form in ("grm_dpo_noref", "grm_dpo")


def text_loss(
    hidden: torch.Tensor, input_ids: torch.Tensor, batch: Batch, lm_head: LMHead, args: ICRMConfig
) -> torch.Tensor:
    """L_text: mean token loss of the chosen responses, or a form of GRM (`objectives.grm_text_loss`).

    Args:
        hidden: last hidden states of the rows that the term reads, the chosen ones or all (`reads_rejected`).
            Shape: (B or 2B, T, H).
        input_ids: Shape: (2B, T).
        batch: of the same rows.
        lm_head: frozen output layer, of V tokens.
        args: `text_form` and `text_beta`.

    Returns:
        Scalar.
    """
    mask = batch.response_mask
    pairs = len(mask) // 2
    rows = len(mask) if reads_rejected(args) else pairs
    weight = lm_head.weight.to(hidden.dtype)  # once, not in every call
    # The op's own mean is cheaper, but comes in the states' type: in bfloat16 a sum made of it is off by nats.
    sums_matter = args.text_form != "mean_nll" and hidden.dtype.itemsize < 4
    predicted = mask[:rows, 1:]
    lengths = predicted.sum(1).tolist()
    places = predicted.nonzero(as_tuple=True)  # once: a mask would make the host wait for the device in each row
    states, targets = hidden[:rows, :-1][places], input_ids[:rows, 1:][places]
    if len(targets) * len(weight) <= MOST_LOGITS:
        bias = None if lm_head.bias is None else lm_head.bias.to(weight.dtype)
        logits = F.linear(states, weight, bias)
        losses = F.cross_entropy(
            logits.to(torch.promote_types(logits.dtype, torch.float32)), targets, reduction="none"
        ).split(lengths)
    else:
        # One chunked call a response, as the formulas want the mean of each; for all tokens at once its backward pass
        # would compute the logits again.
        losses = []
        for some, of in zip(states.split(lengths), targets.split(lengths), strict=True):
            nll = token_nll(some, weight, of, bias=lm_head.bias, reduction="none" if sums_matter else "mean")
            losses.append(nll.to(torch.promote_types(nll.dtype, torch.float32)))
    means = torch.stack([loss.mean() for loss in losses])
    if args.text_form == "mean_nll":
        return means.mean()
    sums = -means * predicted.sum(1)  # S(y): GRM sums over the tokens
    reference = (None, None) if batch.reference is None else batch.reference.chunk(2)
    return grm_text_loss(
        sums[:pairs],
        sums[pairs:] if rows > pairs else None,
        form=args.text_form.removeprefix("grm_"),
        beta=args.text_beta,
        reference_chosen=reference[0],
        reference_rejected=reference[1],
    )


def frozen_lm_head(model: PreTrainedModel, *, revision: str | None, sharded: bool) -> LMHead:
    """Find the output layer that the text term reads.

    Args:
        model: the reward model, without adapter.
        revision: of the hub id that it was loaded from.
        sharded: its weights are divided among processes (FSDP, ZeRO-3), so the layer is read from the checkpoint.

    Returns:
        the tied embeddings where the model has them (a copy where they are trained), else what the checkpoint holds.

    Raises:
        ValueError: the model transforms its logits, or its checkpoint has no such tensors.
    """
    refuse_transformed_logits(model.config)
    embeddings = model.get_input_embeddings().weight
    own = skeleton(model.config)
    if sharded or not _is_tied(own) or lm_head_of(own).bias is not None:
        return load_lm_head(model.config._name_or_path, config=model.config, revision=revision)
    return LMHead(embeddings.detach().clone() if embeddings.requires_grad else embeddings.detach())


def given_lm_head(lm_head: torch.Tensor | Sequence[torch.Tensor], config: PreTrainedConfig) -> LMHead:
    """Return the output layer that a caller gave for a model of this configuration.

    Args:
        lm_head: the weight, shape (V, H), or weight and bias, shape (V,).
        config: of the reward model.

    Raises:
        ValueError: the architecture has a bias and none is given, or the other way round; it transforms its logits.
    """
    refuse_transformed_logits(config)
    head = LMHead(lm_head) if isinstance(lm_head, torch.Tensor) else LMHead(*lm_head)
    biased = lm_head_of(skeleton(config)).bias is not None
    if biased != (head.bias is not None):
        wanted = "one: pass lm_head=(weight, bias)" if biased else "none: pass lm_head=weight"
        raise ValueError(
            f"lm_head= has {'no bias' if biased else 'a bias'}, the head of a causal {config.model_type} has {wanted}"
        )
    return head


def load_lm_head(path: str, *, config: PreTrainedConfig | None = None, revision: str | None = None) -> LMHead:
    """Read the output layer of a causal checkpoint without loading the rest.

    What its tensors are called, and whether they are the input embeddings, the architecture says.

    Args:
        path: local directory or hub id.
        config: the model's; read from `path` when None.
        revision: of the hub id.

    Raises:
        ValueError: the checkpoint has no such tensors in safetensors files.
    """
    model = skeleton(config or AutoConfig.from_pretrained(path, revision=revision, **NO_CODE))
    output = _name_of(model, model.get_output_embeddings())
    # Of one tensor under two names a file may hold either.
    weights = [_name_of(model, model.get_input_embeddings())] if _is_tied(model) else []
    weights = [f"{name}.weight" for name in (*weights, output)]
    biases = [] if lm_head_of(model).bias is None else [f"{output}.bias"]
    found = _read(path, model, {*weights, *biases}, revision) if path else {}  # built from a configuration: no name
    for names in filter(None, (weights, biases)):
        if not found.keys() & set(names):
            raise ValueError(
                f"no {names[0]} in the safetensors files of {path!r}; pass lm_head=, start from a causal language "
                "model's checkpoint, or set sft_weight=0"
            )
    return LMHead(*(next(found[name] for name in names if name in found) for names in (weights, biases) if names))


def _is_tied(model: PreTrainedModel) -> bool:
    return lm_head_of(model).weight is model.get_input_embeddings().weight


def _name_of(model: PreTrainedModel, module: torch.nn.Module) -> str:
    return next(name for name, other in model.named_modules() if other is module)


def _read(path: str, model: PreTrainedModel, wanted: set[str], revision: str | None) -> dict[str, torch.Tensor]:
    """Read tensors by their names in the model; in files they may have older ones (`embed_out`) or no prefix."""
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    state = model.state_dict()
    optional = {"revision": revision, "_raise_exceptions_for_missing_entries": False}

    def own(name: str) -> str:
        return rename_source_key(name, renamings, [], model.base_model_prefix, state)[0]

    index = cached_file(path, "model.safetensors.index.json", **optional)
    files = {"model.safetensors"}
    if index:
        places = json.loads(Path(index).read_text())["weight_map"]
        files = {file for name, file in places.items() if own(name) in wanted}
    found = {}
    for file in filter(None, [cached_file(path, name, **optional) for name in sorted(files)]):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            found |= {own(name): tensors.get_tensor(name) for name in names if own(name) in wanted}
    return found
