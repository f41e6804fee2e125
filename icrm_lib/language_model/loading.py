"""What is read of a model that somebody else made: safetensors and settings; no code, and no pickle, which is code."""

from pathlib import Path
from types import MappingProxyType

# For every `from_pretrained` of a configuration or tokenizer. Left out, transformers would ask at the terminal whether
# to run a repository's code, and take a "y" from whatever stands at standard input.
NO_CODE = MappingProxyType({"trust_remote_code": False})
# For every `from_pretrained` of weights.
SAFE = MappingProxyType({**NO_CODE, "use_safetensors": True})

PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


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
        raise ValueError(
            f"{folder} has its weights in {', '.join(pickles)}: pickles, which may run any code when read; weights are "
            "read from safetensors only. Where you trust the files, load the model there with transformers (an "
            "adapter with peft) and call its save_pretrained on a new folder, which writes safetensors"
        )
