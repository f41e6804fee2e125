"""The choice of settings, method by method, on validation pairs whose labels are as noisy as the training's."""

from collections.abc import Iterable
from pathlib import Path

from icrm_lib import records
from icrm_lib.lab.cells import Cell, tuned_as, tuning_cells
from icrm_lib.lab.grid import run_grid
from icrm_lib.lab.test_sets import VALIDATION
from icrm_lib.profiles import Profile


def tune(
    profile: Profile,
    cells: Iterable[Cell],
    *,
    folder: Path | None = None,
    workers: int | None = None,
) -> dict[str, dict[str, float]]:
    """Run the trials of what some cells need tuned, and choose by accuracy on the noisy labels of validation pairs.

    Args:
        profile: of the grid.
        cells: whose methods are tuned.
        folder, workers: see `run_grid`.

    Returns:
        by `tuned_as`, the chosen settings; ties go to the first trial.
    """
    wanted = {tuned_as(cell) for cell in cells}
    trials = {name: options for name, options in tuning_cells().items() if name in wanted}
    every = [cell for options in trials.values() for trial in options for cell in trial]
    paths = run_grid(profile, every, tuned={}, folder=folder, workers=workers)

    def accuracy(trial: list[Cell]) -> float:
        counts = [records.read_json(paths[cell])["metrics"]["accuracy"][VALIDATION] for cell in trial]
        return sum(sum(count["right"]) for count in counts) / sum(sum(count["count"]) for count in counts)

    return {name: dict(max(options, key=accuracy)[0].changes) for name, options in trials.items()}
