"""Records of cells, read."""

from pathlib import Path
from typing import Any

from icrm_lib import records, runtime

TUNING = 100  # seeds from here on only chose settings


def command_for(profile: str, purpose: str) -> str:
    """Return the command that makes the cells of a purpose."""
    return f"make evidence PROFILE={profile}" + (f" ONLY={purpose}" if purpose != "evidence" else "")


def load_cells(
    profile: str, folder: Path | None = None, *, purpose: str = "evidence"
) -> dict[str, dict[int, dict[str, Any]]]:
    """Read all cells of a profile that are evidence, not tuning.

    Args:
        profile: its name.
        folder: where the records lie; `results/<profile>/<purpose>` when None.
        purpose: what the cells measure: "evidence", "best_of_n" or "policy".

    Returns:
        variant (a cell's name without its seed, e.g. "icrm" or "icrm-exact") -> seed -> record.

    Raises:
        FileNotFoundError: there is none; the message names the command that makes them.
        ValueError: cells of one variant were made with different settings, profiles or base models; or a name that
            leads out of `results`.
    """
    results = runtime.project_root() / "results"
    folder = folder or results / runtime.plain_name(profile) / runtime.plain_name(purpose)
    command = command_for(profile, purpose)
    cells: dict[str, dict[int, dict]] = {}
    for path in sorted(folder.glob("*-seed_*.json")):
        variant, _, seed = path.stem.rpartition("-seed_")
        if int(seed) < TUNING:
            cells.setdefault(variant, {})[int(seed)] = records.read_json(path)
    if not cells:
        shown = runtime.display_path(folder)
        raise FileNotFoundError(f"no cells in {shown}; make them: {command}")
    for variant, runs in cells.items():
        keys = ([r["config"]["settings"], r["config"]["profile"], r["base_model"]] for r in runs.values())
        made = {records.fingerprint(key) for key in keys}
        if len(made) > 1:
            raise ValueError(
                f"the cells of {variant} were made with {len(made)} different settings, profiles or base models; "
                f"delete {variant}-seed_*.json in {runtime.display_path(folder)}, then: {command}"
            )
    return cells
