"""How many tokens a model takes, and from how many on its rotary frequencies depend on what stands beside a row."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset
from transformers import FalconConfig, MptConfig, PreTrainedConfig

EXTENDED = ("dynamic", "linear", "yarn")  # RoPE types whose `factor` stretches the positions that a configuration names


class SequenceTooLong(ValueError):
    """A row has more tokens than the model has positions for."""


def position_limit(config: PreTrainedConfig) -> int | None:
    """Return how many tokens a model takes at most.

    Learned positions end there, rotary ones were trained up to there. A sliding window is no limit. RoPE scaling
    stretches it as in vLLM's `_get_and_verify_max_len`: YaRN to factor x the original length, "linear" and "dynamic"
    to factor x `max_position_embeddings`, the others (llama3, longrope) have it stretched already.

    Args:
        config: of any model.

    Returns:
        number of tokens; None for ALiBi (except MPT's, of which `transformers` makes so many) and recurrent models.
    """
    config = config.get_text_config()
    if isinstance(config, MptConfig):
        return config.max_seq_len
    if isinstance(config, FalconConfig) and config.alibi:
        return None
    limit = getattr(config, "max_position_embeddings", None)  # attribute maps lead there from `n_positions`
    if limit is None or limit < 1:  # XLNet says -1
        return None
    rope = _rope_parameters(config)
    if len(rope) != 1 or rope[0]["rope_type"] not in EXTENDED:  # by layers (Gemma 3): the limit holds the factor
        return limit
    start = rope[0].get("original_max_position_embeddings") or limit
    return max(limit, int(rope[0]["factor"] * (start if rope[0]["rope_type"] == "yarn" else limit)))


def steady_length(config: PreTrainedConfig) -> int | None:
    """Return up to how many tokens a model's rotary frequencies are the same for every row.

    LongRoPE takes other frequencies for the whole batch when its longest row is longer than the original length;
    dynamic NTK grows them with it, and keeps them until it meets a row shorter than that length
    (`transformers.modeling_rope_utils.dynamic_rope_update`).

    Args:
        config: of any model.

    Returns:
        number of tokens; None where the frequencies never change.
    """
    config = config.get_text_config()
    lengths = [
        config.max_position_embeddings - 1
        if "dynamic" in rope["rope_type"]
        else rope["original_max_position_embeddings"]
        for rope in _rope_parameters(config)
        if "dynamic" in rope["rope_type"] or rope["rope_type"] == "longrope"
    ]
    return min(lengths, default=None)


def refuse_too_long(config: PreTrainedConfig, lengths: Sequence[int]) -> None:
    """Raise where rows have more tokens than the model has positions.

    Args:
        config: of the model.
        lengths: tokens of each row.

    Raises:
        SequenceTooLong: names the first row, its tokens, the limit and the remedy.
    """
    limit = position_limit(config)
    too_long = [] if limit is None else [row for row, length in enumerate(lengths) if length > limit]
    if too_long:
        more = f" (and {len(too_long) - 1} more rows are too long)" if len(too_long) > 1 else ""
        raise SequenceTooLong(
            f"row {too_long[0]} has {lengths[too_long[0]]} tokens{more}, the model has positions for {limit}; give "
            f"max_length={limit}, which cuts the beginning of the prompt, or shorter texts"
        )


def trainable_length(config: PreTrainedConfig, multiple: int = 1) -> tuple[int | None, str]:
    """Return how many tokens the rows of a training batch may have, None for any number, and why.

    Args:
        config: of the model.
        multiple: batches are padded to a multiple of so many tokens.
    """
    limit, steady = position_limit(config), steady_length(config)
    if steady is None or (limit is not None and limit <= steady):
        return limit, "it has positions for no more"
    reason = "with more, the RoPE frequencies of a row would depend on the longest one of its batch"
    return steady - steady % multiple, reason


def refuse_to_train(
    config: PreTrainedConfig, dataset: Dataset, columns: Sequence[str], *, name: str, multiple: int = 1
) -> None:
    """Raise where rows of a training set are longer than the model's positions, or than its steady RoPE.

    Args:
        config: of the model.
        dataset: tokenised rows.
        columns: those that hold token ids.
        name: of the data set, for the message.
        multiple: batches are padded to a multiple of so many tokens.

    Raises:
        SequenceTooLong: counts the rows, says why and what to set.
    """
    limit, reason = trainable_length(config, multiple)
    if limit is None:
        return
    lengths = _lengths(dataset, columns)
    rows = int((lengths > limit).sum())
    if rows:
        raise SequenceTooLong(
            f"{rows} of {len(lengths)} rows of the {name} dataset have more tokens than the {limit} that the model can "
            f"be trained on (the longest has {lengths.max()}; {reason}); set max_length={limit} where they are "
            "tokenised, or leave them out"
        )


def _lengths(dataset: Dataset, columns: Sequence[str]) -> np.ndarray:
    """Tokens of the longest sequence of each row."""
    batches = dataset.select_columns(list(columns)).with_format("arrow").iter(10_000)
    counts = [[pc.list_value_length(batch[name]).to_numpy() for name in columns] for batch in batches]
    return np.concatenate([np.max(count, axis=0) for count in counts]) if counts else np.empty(0, dtype=int)


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """RoPE's parameters: one dictionary for the model, or one a type of layer; none without RoPE."""
    parameters = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in parameters:
        return [parameters]
    return [layer for layer in parameters.values() if isinstance(layer, dict) and "rope_type" in layer]
