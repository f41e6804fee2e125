"""Cells in a row: those that are not finished are run, several at a time; a finished one is never run again.

A cell's record lies in `results/<profile>/<purpose>/<cell>.json`; a killed run loses at most the cells that were being
computed.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm.auto import tqdm

from icrm_lib import records
from icrm_lib.lab.cell import run_cell
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.inputs import base_model, settings_of
from icrm_lib.lab.purposes import PURPOSES
from icrm_lib.lab.record import cell_config, cells_folder, is_finished
from icrm_lib.lab.workers import in_processes
from icrm_lib.profiles import Profile

logger = logging.getLogger(__name__)


def run_grid(
    profile: Profile,
    cells: Iterable[Cell],
    *,
    tuned: dict[str, dict[str, float]],
    purpose: str = "evidence",
    folder: Path | None = None,
    workers: int | None = None,
) -> dict[Cell, Path]:
    """Run the cells that are not finished, several at a time, one thread each.

    Args:
        profile: of the grid.
        cells: what to run; one that occurs twice is run once.
        tuned: by method, the settings that tuning chose.
        purpose: what to measure, see `purposes`.
        folder: where records lie; `cells_folder(profile, purpose)` when None.
        workers: processes; the number of cores when None. 0 runs the cells in this process.

    Returns:
        the record of every cell. A cell that fails is reported, the others still run, and then the first error is
        raised.
    """
    folder = folder or cells_folder(profile, purpose)
    jobs = {}
    for cell in dict.fromkeys(cells):
        jobs[cell] = (settings_of(profile, cell, tuned), folder / f"{cell.name}.json", purpose)

    def waiting() -> dict[Cell, tuple]:
        return {
            cell: (settings, path, _)
            for cell, (settings, path, _) in jobs.items()
            if not is_finished(path, cell_config(profile, cell, settings, purpose))
        }

    if waiting():
        with records.locked(folder):
            if still := waiting():  # not finished by another run meanwhile
                _make_what_they_share(profile, still, purpose)
                _run_all(profile, still, len(jobs), os.cpu_count() or 1 if workers is None else workers)
    return {cell: path for cell, (_, path, _) in jobs.items()}


def _make_what_they_share(profile: Profile, cells: Iterable[Cell], purpose: str) -> None:
    wanted = {"base"}.union(*({cell.base, cell.generator} for cell in cells))
    for kind in ("base", "small", "under-trained", "double"):
        if kind in wanted:
            base_model(profile, kind)
    PURPOSES[purpose].prepare(profile)


def _run_all(profile: Profile, jobs: dict[Cell, tuple], total: int, workers: int) -> None:
    failures = []
    with tqdm(total=total, initial=total - len(jobs), desc="cells", unit="cell", smoothing=0.05, mininterval=1) as bar:
        finished = in_processes(run_cell, profile, jobs, workers) if workers else _one_by_one(profile, jobs)
        for cell, error in finished:
            if error:  # the other cells are worth having, whatever went wrong with this one
                logger.error("cell %s failed: %s", cell.name, error)
                failures.append(error)
            bar.update()
    if failures:
        raise failures[0]


def _one_by_one(profile: Profile, jobs: dict[Cell, tuple]) -> Iterator[tuple[Cell, Exception | None]]:
    for cell, job in jobs.items():
        try:
            run_cell(profile, cell, *job)
        except Exception as error:
            yield cell, error
        else:
            yield cell, None
