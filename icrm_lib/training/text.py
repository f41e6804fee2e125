"""The text term: log-probabilities of responses through the frozen language-model head."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from icrm_lib.language_model.causal import refuse_transformed_logits, token_nll
from icrm_lib.objectives import grm_text_loss
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.loss import Batch


def reads_rejected(args: ICRMConfig) -> bool:
    """Whether the text term reads the rejected responses too."""
    return args.text_form in ("grm_dpo_noref", "grm_dpo")


def text_loss(
    hidden: torch.Tensor, input_ids: torch.Tensor, batch: Batch, lm_head: torch.Tensor, args: ICRMConfig
) -> torch.Tensor:
    """L_text: mean token loss of the chosen responses, or a form of GRM (`objectives.grm_text_loss`).

    Args:
        hidden: last hidden states of the rows that the term reads, the chosen ones or all (`reads_rejected`).
            Shape: (B or 2B, T, H).
        input_ids: Shape: (2B, T).
        batch: of the same rows.
        lm_head: frozen output embeddings. Shape: (V, H).
        args: `text_form` and `text_beta`.

    Returns:
        Scalar.
    """
    mask = batch.response_mask
    pairs = len(mask) // 2
    rows = len(mask) if reads_rejected(args) else pairs
    lm_head = lm_head.to(hidden.dtype)
    # The op's own mean is cheaper, but comes in the states' type: in bfloat16 a sum made of it is off by nats.
    sums_matter = args.text_form != "mean_nll" and hidden.dtype.itemsize < 4
    losses = []
    for row in range(rows):  # one call a response: the formulas want a mean or sum of each
        predicted = mask[row, 1:]
        states, targets = hidden[row, :-1][predicted], input_ids[row, 1:][predicted]
        nll = token_nll(states, lm_head, targets, reduction="none" if sums_matter else "mean")
        losses.append(nll.to(torch.promote_types(nll.dtype, torch.float32)).mean())
    means = torch.stack(losses)
    if args.text_form == "mean_nll":
        return means.mean()
    sums = -means * mask[:rows, 1:].sum(1)  # S(y): GRM sums over the tokens
    reference = (None, None) if batch.reference is None else batch.reference.chunk(2)
    return grm_text_loss(
        sums[:pairs],
        sums[pairs:] if rows > pairs else None,
        form=args.text_form.removeprefix("grm_"),
        beta=args.text_beta,
        reference_chosen=reference[0],
        reference_rejected=reference[1],
    )


def frozen_lm_head(model: PreTrainedModel, *, revision: str | None, sharded: bool) -> torch.Tensor | None:
    """Find the output embeddings that the text term reads.

    Args:
        model: the reward model, without adapter.
        revision: of the hub id that it was loaded from.
        sharded: its weights are divided among processes (FSDP, ZeRO-3), so the matrix is read from the checkpoint.

    Returns:
        a copy, Shape: (V, H); None where the tied embeddings stay as they are and can be read at any time.

    Raises:
        ValueError: the model transforms its logits, or its checkpoint has no such tensor.
    """
    refuse_transformed_logits(model.config)
    embeddings = model.get_input_embeddings().weight
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and not sharded:
        return embeddings.detach().clone() if embeddings.requires_grad else None
    return load_lm_head(model.config._name_or_path, revision=revision, tied=tied)


def load_lm_head(path: str, *, revision: str | None = None, tied: bool = False) -> torch.Tensor:
    """Read the output embeddings of a causal checkpoint without loading the rest. Shape: (V, H).

    Args:
        path: local directory or hub id.
        revision: of the hub id.
        tied: they are the input embeddings, `model.embed_tokens.weight`; else `lm_head.weight`.

    Raises:
        ValueError: the checkpoint has no such tensor in safetensors files.
    """
    wanted = "model.embed_tokens.weight" if tied else "lm_head.weight"
    optional = {"revision": revision, "_raise_exceptions_for_missing_entries": False}
    name, file = "model.safetensors", None
    if path:  # a model built from a configuration has no name
        index = cached_file(path, "model.safetensors.index.json", **optional)
        if index:
            name = json.loads(Path(index).read_text())["weight_map"].get(wanted, name)
        file = cached_file(path, name, **optional)
    if file:
        with safe_open(file, framework="pt") as tensors:
            if wanted in tensors.keys():  # noqa: SIM118 (a safe_open handle is no mapping)
                return tensors.get_tensor(wanted)
    raise ValueError(
        f"no {wanted} in the safetensors files of {path!r}; pass lm_head=, start from a causal language model's "
        "checkpoint, or set sft_weight=0"
    )
