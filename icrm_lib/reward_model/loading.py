"""Load the one-label model of a reward model's directory, whoever saved it; what is not all there is refused."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel

from icrm_lib.language_model.adapters import Adapter, is_adapter, merge, read_adapter
from icrm_lib.language_model.loading import (
    NO_CODE,
    has_usual_names,
    load_whole,
    model_folder,
    refuse_pickles,
    saved_shapes,
    saved_tensors,
)
from icrm_lib.reward_model.foreign.heads import fold_normalisation, head_of, put_head
from icrm_lib.reward_model.foreign.names import body_names, plain
from icrm_lib.reward_model.head import reward_head
from icrm_lib.runtime import error_lines
from icrm_lib.tokenization import load_tokenizer


def load_reward_model(
    path: str | Path, *, base_model: str | Path | None = None, revision: str | None = None, dtype: Any = "auto"
) -> tuple[PreTrainedModel, Path]:
    """Load a one-label model: whole, an adapter, or a head beside its language model.

    Args:
        path: local directory or hub id.
        base_model: directory or hub id of the base model, where `path` holds an adapter or a head alone; what the
            adapter's configuration names when None.
        revision: of the hub id.
        dtype: weights' type.

    Returns:
        The model, and the directory whose tokenizer belongs to it.

    Raises:
        FileNotFoundError: no such directory.
        ValueError: weights that are missing, superfluous, of another shape or pickled; no head, or one that is not
            known.
    """
    folder = model_folder(path, revision=revision)
    if is_adapter(folder):
        model, base, has_head = _with_adapter(read_adapter(folder, base_model), dtype)
        if not has_head:
            raise ValueError(
                f"the adapter {folder.name} has no reward head, and its base model {base.name} has none: it was saved "
                "without modules_to_save=['score'], or it is no reward model's (a language model's adapter is merged "
                "as a base model, and a new head is what training.ICRMTrainer starts from)"
            )
        if not _has_tokenizer(folder):
            return model, base
        # PEFT keeps no configuration of the model; whoever trained padded with this token.
        model.config.get_text_config().pad_token_id = load_tokenizer(folder).pad_token_id
        return model, folder
    refuse_pickles(folder)
    if (folder / "config.json").is_file():
        if base_model is not None and head_of(saved_shapes(folder)) is not None:
            raise ValueError(
                f"{folder.name} is a whole model; base_model= is for adapters and heads alone, leave it out"
            )
        return load_classifier(folder, dtype=dtype), folder
    head = head_of(saved_shapes(folder))
    if head is None:
        raise ValueError(f"{folder} holds no model: no config.json and no reward head; give the directory of a model")
    if not base_model:
        raise ValueError(f"{folder} holds a reward head and no model; name the language model: base_model=...")
    base = model_folder(base_model)
    model = load_classifier(base, dtype=dtype, needs_head=False)
    put_head(model, head, saved_tensors(folder, head.tensors.values()))
    return model, folder if _has_tokenizer(folder) else base


def load_classifier(folder: str | Path, *, dtype: Any = "auto", needs_head: bool = True) -> PreTrainedModel:
    """Load a one-label model from a directory of its own, in the layout of any tool that is known.

    Args:
        folder: local directory with a config.json.
        dtype: weights' type.
        needs_head: whether a head must be there; else another source brings it, and a language model alone will do.

    Raises:
        ValueError: see `load_reward_model`.
    """
    folder = Path(folder)
    refuse_pickles(folder)
    config = _config(folder)
    skeleton = _skeleton(config, folder)
    shapes = saved_shapes(folder)
    if not shapes:
        raise ValueError(f"{folder} has no weights in safetensors files; give the directory that holds them")
    head = head_of(shapes, config)
    may_miss = [] if needs_head and head is None else ["score.weight"]
    own = [*(head.tensors.values() if head else ()), *(name for name in shapes if plain(name) in ("mean", "std"))]
    names = body_names(shapes, skeleton, own)
    options = {"config": config, "may_miss": may_miss, "aside": own}
    if names is None and has_usual_names(folder):  # as transformers itself writes it
        model = load_whole(type(skeleton), folder, dtype=dtype, **options)
    else:
        tensors = saved_tensors(folder)
        state = {new: tensors[old] for new, old in (names or {name: name for name in shapes}).items()}
        matrices = (value.dtype for value in state.values() if value.is_floating_point() and value.ndim > 1)
        dtype = next(matrices) if dtype == "auto" else dtype
        model = load_whole(type(skeleton), None, state_dict=state, dtype=dtype, **options)
    if head is not None:
        tensors = saved_tensors(folder, own)
        put_head(model, head, tensors)
        fold_normalisation(model, tensors)
    return model


def _with_adapter(adapter: Adapter, dtype: Any) -> tuple[PreTrainedModel, Path, bool]:
    """Load an adapter's base model, the adapter merged into it and its head put on.

    Returns:
        The model, the directory whose tokenizer it has where the adapter has none, and whether its head is trained.
    """
    base = Path(adapter.base)
    if is_adapter(base):
        model, inner, has_head = _with_adapter(read_adapter(base), dtype)
        base = base if _has_tokenizer(base) else inner
    else:
        has_head = head_of(saved_shapes(base), _config(base)) is not None
        model = load_classifier(base, dtype=dtype, needs_head=False)
    head = head_of(saved_shapes(adapter.folder))
    beside = head is not None and head.beside_model
    tensors = saved_tensors(adapter.folder, head.tensors.values()) if head else {}
    if head is not None and not beside and head.layers > 1:
        put_head(model, head, tensors)  # PEFT must find a head of this shape
    model = merge(adapter, model, has=("score",) if head is None or beside else ())
    if beside:
        put_head(model, head, tensors)
    return model, base, has_head or head is not None


def _config(folder: Path) -> PreTrainedConfig:
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the config.json of {folder.name} cannot be read ({error}); copy the directory again"
        ) from error
    try:
        return AutoConfig.from_pretrained(str(folder), num_labels=1, **NO_CODE)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"the config.json of {folder.name} names no architecture that transformers has "
            f"({error_lines(error)[0]:.200}); models that need code of their own are not read: convert them to an "
            "architecture of transformers"
        ) from error


def _skeleton(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Return the one-label model of a configuration without weights."""
    model_class = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if model_class is None:
        raise ValueError(
            f"{folder.name} is a {config.model_type}, of which transformers has no sequence classification model; use "
            "an architecture that has one (Llama, Gemma, Qwen, Mistral, ...)"
        )
    try:
        with torch.device("meta"):
            model = model_class(config)
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"no {config.model_type} can be built by the config.json of {folder.name} "
            f"({error_lines(error)[0]:.200}); mend it, or copy it from the model that the weights are of"
        ) from error
    reward_head(model)
    return model


def _has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file()
