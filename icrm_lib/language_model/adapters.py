"""Adapters of PEFT: which base model they need, and that they are merged whole."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from peft import PeftConfig, PeftModel, TaskType, get_peft_model_state_dict
from transformers import PreTrainedModel

from icrm_lib.language_model.loading import model_folder, quiet_report, refuse_pickles, saved_shapes
from icrm_lib.runtime import error_lines


class Adapter(NamedTuple):
    """An adapter's directory, its configuration, and the directory or hub id of its base model."""

    folder: Path
    config: PeftConfig
    base: str


def is_adapter(folder: Path) -> bool:
    """Say whether a local directory holds an adapter rather than a model."""
    return (folder / "adapter_config.json").is_file()


def read_adapter(folder: Path, base_model: str | Path | None = None) -> Adapter:
    """Read an adapter's configuration, without its weights.

    Args:
        folder: local directory of the adapter.
        base_model: directory or hub id of its base model; the one that its configuration names when None.

    Raises:
        FileNotFoundError: the base model is not there.
        ValueError: an adapter that cannot be merged, or that names no base model.
    """
    refuse_pickles(folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the adapter_config.json of {folder.name} cannot be read ({type(error).__name__}: {error}); save the "
            "adapter again with peft"
        ) from error
    if config.is_prompt_learning:
        raise ValueError(
            f"{folder.name} is an adapter of kind {config.peft_type.value}, which puts tokens of its own before the "
            "text and cannot be merged; adapters that change weights (LoRA and its kin) are read"
        )
    base = base_model or config.base_model_name_or_path
    if not base:
        raise ValueError(f"the adapter {folder.name} names no base model; give base_model=, its directory or hub id")
    try:
        found = model_folder(base if base_model is None else str(base))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the adapter {folder.name} needs its base model: {error}; give base_model= where it lies elsewhere"
        ) from error
    if found.resolve() == folder.resolve():
        raise ValueError(f"the adapter {folder.name} names itself as its base model; give base_model=")
    return Adapter(folder, config, str(found))


def merge(adapter: Adapter, model: PreTrainedModel, *, has: Collection[str] = ()) -> PreTrainedModel:
    """Merge an adapter into its base model, every weight of it.

    Args:
        adapter: of `read_adapter`.
        model: the base model.
        has: modules that the adapter may lack, since the base model has them trained.

    Raises:
        ValueError: the adapter lacks weights, or holds some that the base model has no place for.
    """
    if adapter.config.task_type != TaskType.SEQ_CLS or has:
        adapter.config.task_type = None  # its decoder has the layers of ours, whatever its head is for
        adapter.config.modules_to_save = [m for m in adapter.config.modules_to_save or [] if m not in has] or None
    adapter.config.inference_mode = True
    shapes = saved_shapes(adapter.folder)
    embeddings = model.get_input_embeddings()
    own = next(name for name, module in model.named_modules() if module is embeddings)
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(f".{own}.weight")]
    if rows and rows[0] != embeddings.num_embeddings:  # tokens were added before the training
        model.resize_token_embeddings(rows[0], mean_resizing=False)
    try:
        with quiet_report():
            whole = PeftModel.from_pretrained(model, str(adapter.folder), config=adapter.config)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"the adapter {adapter.folder.name} does not fit {type(model).__name__} of {Path(adapter.base).name} "
            f"({error_lines(error)[-1].strip():.200}); give the base model that it was trained on"
        ) from error
    expected = set(get_peft_model_state_dict(whole, save_embedding_layers=False))
    saved = {name for name in shapes if "lm_head" not in name and "v_head" not in name}
    missing = sorted(name for name in expected - saved if not any(f".{module}." in name for module in has))
    extra = sorted(name for name in saved - expected if not name.endswith(f".{own}.weight"))
    if missing or extra:
        fault = f"lacks {missing[0]}" if missing else f"holds {extra[0]}, which has no place"
        raise ValueError(
            f"the adapter {adapter.folder.name} {fault} in {type(model).__name__} of {Path(adapter.base).name}; give "
            "the base model that it was trained on, or save the adapter whole (a reward head with "
            "modules_to_save=['score'])"
        )
    try:
        return whole.merge_and_unload()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"the adapter {adapter.folder.name} cannot be merged ({error_lines(error)[0]:.200}); train it "
            "without what stands in the way, or merge it where it was trained"
        ) from error


def merged_adapter(folder: Path, load_base: Callable[[str], PreTrainedModel]) -> PreTrainedModel:
    """Return the base model of an adapter with the adapter merged into it.

    Args:
        folder: local directory of the adapter.
        load_base: loads the base model from its directory.
    """
    adapter = read_adapter(folder)
    return merge(adapter, load_base(adapter.base))
