"""Where the project lies, what it runs on, and how to keep third-party libraries quiet."""

import difflib
import os
import platform
import random
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

# What decides a number in a record; printed at the start of every notebook and stored with every result.
PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy")
# Warnings of libraries about each other that nobody here can act on; the pattern matches where a message begins.
KNOWN_WARNINGS = (
    r"`(is_)?gradient_checkpointing` is deprecated",  # transformers, of the name that TRL and PEFT use
)


def project_root(start: str | Path | None = None) -> Path:
    """Return the folder that holds `pyproject.toml`, walking up from `start`.

    The working directory differs between papermill (the caller's), nbval and JupyterLab (the notebook's), so
    nothing in the kit uses it as it is. A worker of a grid on another machine is in no project: there `ICRM_ROOT`
    names the folder that stands for it.

    Args:
        start: folder to start from; the current working directory when None.

    Raises:
        FileNotFoundError: no parent holds the project's `pyproject.toml`.
    """
    if start is None and (root := os.environ.get("ICRM_ROOT")):
        return Path(root)
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() and (folder / "icrm_lib").is_dir():
            return folder
    raise FileNotFoundError(
        f"no pyproject.toml next to an icrm_lib folder in {here} or above it; start from inside the project"
    )


def resolve_path(path: str | Path) -> Path:
    """Return `path` as given when absolute, else relative to the project root."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else project_root() / path


def plain_name(name: str) -> str:
    """Return a name that becomes one file or folder, as it is, after a look whether it would lead elsewhere.

    Raises:
        ValueError: it is empty, "." or "..", or holds a separator of folders.
    """
    if name in ("", ".", "..") or "\0" in name or Path(name).name != name:
        raise ValueError(
            f"{name!r} cannot name a file or folder of results, runs or figures: it must stay in its folder; use a "
            "name without slashes that is not '.' or '..'"
        )
    return name


def display_path(path: str | Path) -> str:
    """Return `path` relative to the project root where it lies inside, else its last part.

    So that outputs name no machine. A relative path counts from the root, as in `resolve_path`.
    """
    try:
        root = project_root()
    except FileNotFoundError:  # the library also works outside the project
        return Path(path).name
    path = Path(os.path.normpath(root / Path(path).expanduser()))
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def quiet() -> None:
    """Silence progress bars, advice and chosen warnings of the libraries below; call before they are imported.

    For entry points and notebooks alone: stored outputs are compared on other machines, so nothing that depends on the
    machine or on a library's mood may reach them. Errors and every warning not in `KNOWN_WARNINGS` still do.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if not watched():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' own bars follow it, too
    for message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices). Data order, dropout and initialisation follow from it."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device() -> str:
    """Return the device a stage runs on: "cuda" when a GPU is visible, else "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_name() -> str:
    """Return the accelerator's product name, or "CPU (n threads)"."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({torch.get_num_threads()} threads)"


def processor_name() -> str:
    """Return the processor's product name, or its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def processes() -> int:
    """Return how many processes train together, as torchrun and `accelerate launch` say in the environment."""
    return int(os.environ.get("WORLD_SIZE", 1))


def process_index() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ.get("RANK", 0))


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def start(profile: str) -> None:
    """Quiet the libraries and print profile, device and versions: the first code cell of every notebook."""
    quiet()
    print(f"profile {profile} on {device_name()}")
    print(", ".join(f"{name} {number}" for name, number in versions().items()))


def watched() -> bool:
    """Say whether a person watches: then progress bars are worth drawing.

    The notebook runner and the tests set ICRM_UNATTENDED; elsewhere a terminal or a notebook kernel counts.
    """
    if os.environ.get("ICRM_UNATTENDED"):
        return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def error_lines(error: Exception) -> list[str]:
    """Return the lines of an error's message, at least one: the name of its type where it says nothing."""
    return str(error).strip().splitlines() or [type(error).__name__]


def nearest(name: str, known: list[str]) -> str:
    """Return a sentence that names the nearest known name (in any case), or all of them when none is near."""
    spelling = {candidate.casefold(): candidate for candidate in reversed(known)}
    close = difflib.get_close_matches(name.casefold(), spelling, n=1, cutoff=0.5)
    return f"did you mean {spelling[close[0]]!r}?" if close else f"known: {', '.join(known)}"
