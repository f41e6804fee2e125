"""Load a model's weights: all of them, from safetensors, no code; a load that leaves any weight to chance is "
"refused."""

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from icrm_lib.runtime import error_lines

# For every `from_pretrained` of a configuration or tokenizer. Left out, transformers would ask at the terminal whether
# to run a repository's code, and take a "y" from whatever stands at standard input.
NO_CODE = MappingProxyType({"trust_remote_code": False})
# For every `from_pretrained` of weights.
SAFE = MappingProxyType({**NO_CODE, "use_safetensors": True})

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}
_NOT_WANTED = [*(f"*{suffix}" for suffix in sorted(PICKLES)), "*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*"]
# Tensors that a model of another head leaves aside, and buffers that older versions of transformers saved.
_ASIDE = re.compile(
    r"(^|\.)(lm_head|embed_out|score|classifier|v_head|value_head)\.|(inv_freq|masked_bias|attn\.bias|position_ids)$"
)


def model_folder(path: str | Path, *, revision: str | None = None) -> Path:
    """Return the local directory of a model: the directory itself, or a copy of a hub repository's.

    Pickles are not fetched. The hub is asked once.

    Args:
        path: local directory or hub id "owner/name".
        revision: of the hub id.

    Raises:
        FileNotFoundError: no such directory, or a hub id that cannot be fetched and was not before.
    """
    if not isinstance(path, str | Path):
        raise FileNotFoundError(f"no directory {path!r}; give the directory of a model or a hub id (owner/name)")
    if str(path).strip() and Path(path).is_dir():
        return Path(path)
    if not isinstance(path, str) or path.count("/") > 1 or path.startswith((".", "/", "~")) or not path.strip():
        raise FileNotFoundError(f"no directory {str(path)!r}; give the directory of a model or a hub id (owner/name)")
    try:
        return Path(snapshot_download(path, revision=revision, ignore_patterns=_NOT_WANTED))
    except Exception as error:  # the hub's client raises errors of three libraries
        reason = error_lines(error)[0]
        raise FileNotFoundError(
            f"there is no directory {path!r} here, and as a hub id it cannot be fetched ({reason:.200}); correct the "
            "name, or download it where there is a network"
        ) from error


def refuse_pickles(path: str | Path) -> None:
    """Raise where a directory's weights are there as pickles only.

    PEFT would read an adapter's pickle when there is nothing else; transformers refuses those of a model, and names no
    remedy.

    Args:
        path: directory of a model or an adapter; a hub id passes (there `SAFE` says what is fetched).

    Raises:
        ValueError: names the files and how to convert them.
    """
    folder = Path(path)
    if not folder.is_dir():
        return
    wanted = "adapter_model*.safetensors" if (folder / "adapter_config.json").is_file() else "model*.safetensors"
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES and file.stem != "training_args")
    if pickles and not any(folder.glob(wanted)):
        whole = (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
        remedy = (
            "load the model there with transformers (an adapter with peft) and call its save_pretrained on a new "
            "folder, which writes safetensors"
            if whole
            else "convert them with torch.load(..., weights_only=True) and safetensors.torch.save_file"
        )
        raise ValueError(
            f"{folder} has its weights in {', '.join(pickles)}: pickles, which may run any code when read; weights are "
            f"read from safetensors only. Where you trust the files, {remedy}"
        )


def saved_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a model or adapter in a local directory, without reading them."""
    shapes = {}
    for file in _weight_files(Path(path)):
        with _opened(file) as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    return shapes


def saved_tensors(path: str | Path, names: Collection[str] | None = None) -> dict[str, torch.Tensor]:
    """Read the tensors of a model or adapter in a local directory, or those of them that are named."""
    tensors = {}
    for file in _weight_files(Path(path)):
        with _opened(file) as opened:
            wanted = [name for name in opened.keys() if names is None or name in names]  # noqa: SIM118 (no mapping)
            tensors |= {name: opened.get_tensor(name) for name in wanted}
    return tensors


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{file.name} of {file.parent.name} cannot be read ({error}); copy or download it again"
        ) from error


def has_usual_names(folder: Path) -> bool:
    """Whether a directory's weights are in files that transformers finds."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def _weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that tools read: those of the index, or the one; and a value head beside them."""
    index, beside = folder / "model.safetensors.index.json", folder / "value_head.safetensors"
    if (folder / "adapter_model.safetensors").is_file():
        names = {"adapter_model.safetensors"}
    elif index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    elif (folder / "model.safetensors").is_file():
        names = {"model.safetensors"}
    else:
        names = {file.name for file in folder.glob("*.safetensors")}
    return sorted({folder / name for name in names} | ({beside} if beside.is_file() else set()))


def load_whole(
    model_class: Any,
    folder: str | Path | None,
    *,
    may_miss: Collection[str] = (),
    aside: Collection[str] = (),
    **kwargs: Any,
) -> PreTrainedModel:
    """Load a model and see that each of its weights came from the files, and each of theirs went somewhere.

    Args:
        model_class: with a `from_pretrained` of transformers.
        folder: local directory or hub id; None with `config` and `state_dict` among `kwargs`.
        may_miss: names of weights that another source brings; they are left at random.
        aside: names of tensors in the files that the caller puts where they belong.
        kwargs: of `from_pretrained`.

    Raises:
        ValueError: a weight is missing, has another shape, or has no place in the model; names it and the remedy.
    """
    with quiet_report():
        model, info = model_class.from_pretrained(
            None if folder is None else str(folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **SAFE,
            **kwargs,
        )
    name = Path(folder).name if folder else "the checkpoint"
    kind = type(model).__name__
    if wrong := [item[0] if isinstance(item, tuple) else item for item in info["mismatched_keys"]]:
        raise ValueError(
            f"{name}: {_listed(wrong)} of another shape than {kind} has by its config.json; give the configuration "
            "that the weights were trained with"
        )
    if missing := sorted(set(info["missing_keys"]) - set(may_miss)):
        heads = " (a new head is what training.ICRMTrainer starts from: train it, then load what was saved)"
        raise ValueError(
            f"{name}: {_listed(missing)} missing for {kind}, and would be drawn at random; give the directory that "
            f"holds all weights{heads if any(item.startswith('score') for item in missing) else ''}"
        )
    if left := sorted(item for item in set(info["unexpected_keys"]) - set(aside) if not _ASIDE.search(item)):
        raise ValueError(
            f"{name}: {_listed(left)} without a place in {kind}, so its outputs would be those of another model; give "
            "the configuration that the weights were trained with"
        )
    return model


@contextmanager
def quiet_report() -> Iterator[None]:
    """Keep transformers from printing its own report of a load, which says MISSING of good adapters, too."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more + (" is" if len(names) == 1 else " are")
