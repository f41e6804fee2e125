"""Cells in a row: those that are not finished are run, several at a time; a finished one is never run again.

A cell's record lies in `results/<profile>/<purpose>/<cell>.json`; a killed run loses at most the cells that were being
computed.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from icrm_lib import records
from icrm_lib.lab.artefacts import machine
from icrm_lib.lab.cell import cell_config, cells_folder, code, is_finished
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.engines import Engine, Place, WorkerLost
from icrm_lib.lab.inputs import settings_of
from icrm_lib.lab.luggage import Luggage, pack
from icrm_lib.lab.worker import Job
from icrm_lib.profiles import Profile

logger = logging.getLogger(__name__)

TRIES = 3  # a cluster takes a while to see that a machine is gone; but a cell that ends every worker must not go on


def run_grid(
    profile: Profile,
    cells: Iterable[Cell],
    *,
    tuned: dict[str, dict[str, float]],
    purpose: str = "evidence",
    folder: Path | None = None,
    workers: int | None = None,
    engine: str = "loky",
    gpus: float = 0.0,
) -> dict[Cell, Path]:
    """Run the cells that are not finished, several at a time, one thread each.

    Two runs may share a folder: they share the cells, too. This process writes the records.

    Args:
        profile: of the grid.
        cells: what to run; one that occurs twice is run once.
        tuned: by method, the settings that tuning chose.
        purpose: what to measure, one of `cell.PURPOSES`.
        folder: where records lie; `cells_folder(profile, purpose)` when None.
        workers, engine, gpus: where cells are computed, see `engines.Engine`.

    Returns:
        the record of every cell. A cell that fails is reported, the others still run, and then the first error is
        raised.
    """
    folder, chosen = folder or cells_folder(profile, purpose), Engine(engine, workers, gpus)
    paths = {cell: folder / f"{cell.name}.json" for cell in cells}
    settings = {cell: settings_of(profile, cell, tuned) for cell in paths}
    jobs = {c: Job(profile, c, settings[c], purpose, code(), machine()) for c, p in paths.items()}
    grid = _Grid(jobs, paths)
    if grid.waiting():
        grid.run(chosen)
    return paths


class _Grid:
    """The cells of one call, with what became of them.

    Args:
        jobs: what to compute.
        paths: where each record belongs.
    """

    def __init__(self, jobs: dict[Cell, Job], paths: dict[Cell, Path]):
        self.jobs, self.paths = jobs, paths
        self.configs = {c: cell_config(j.profile, c, j.settings, j.purpose) for c, j in jobs.items()}
        self.failed: dict[Cell, Exception] = {}
        self.held: dict[Cell, FileLock] = {}  # from when a worker gets a cell until its record is written
        self.in_vain = 0  # workers lost since a cell was finished

    def waiting(self) -> list[Cell]:
        """The cells without a record that did not fail here."""
        return [c for c, path in self.paths.items() if c not in self.failed and not is_finished(path, self.configs[c])]

    def run(self, engine: Engine) -> None:
        """Go on until no cell waits; then raise the first error of those that failed."""
        still = self.waiting()
        luggage = pack([self.jobs[cell] for cell in still], engine.workers)
        options = {"desc": "cells", "unit": "cell", "smoothing": 0.05, "mininterval": 1}
        with tqdm(total=len(self.paths), initial=len(self.paths) - len(still), **options) as bar:
            while still:
                self._round(engine.place(), luggage, bar)
                left = self.waiting()
                if left == still:
                    with records.locked(self.paths[left[0]]):  # another run has all that wait: until it is done
                        pass
                still = left
                bar.update(len(self.paths) - len(still) - bar.n)
        if self.failed:
            raise next(iter(self.failed.values()))

    def _round(self, place: Place, luggage: Luggage, bar: tqdm) -> None:
        """Run the cells that wait and that no other run has, until they are done or a worker is lost."""
        try:
            for cell, found in place.run(luggage.calls(self._claimed(), place)):
                if isinstance(found, Exception):
                    logger.error("cell %s failed: %s", cell.name, found)
                    self.failed[cell] = found
                else:
                    records.write_json(self.paths[cell], found, compact=True)
                self.held.pop(cell).release()
                bar.update()
                self.in_vain = 0
        except WorkerLost as error:
            self.in_vain += 1
            if self.in_vain > TRIES:
                raise
            logger.warning("a worker was lost with its cells, which are run again: %s", error)
        finally:
            while self.held:
                self.held.popitem()[1].release()

    def _claimed(self) -> Iterator[Job]:
        for cell in self.waiting():
            lock = records.claim(self.paths[cell])
            if lock is None:
                continue
            if is_finished(self.paths[cell], self.configs[cell]):  # by another run, just before
                lock.release()
                continue
            self.held[cell] = lock
            yield self.jobs[cell]
