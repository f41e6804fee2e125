"""Cells in a row: those that are not finished are run, several at a time; a finished one is never run again.

A cell's record lies in `results/<profile>/<purpose>/<cell>.json`; a killed run loses at most the cells that were being
computed. Tuning is a grid, too: of trials, on validation pairs whose labels are as noisy as the training's.
"""

import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm.auto import tqdm

from icrm_lib import records, runtime
from icrm_lib.lab.cell import PURPOSES, cell_config, cells_folder, is_finished, run_cell
from icrm_lib.lab.cells import Cell, tuned_as, tuning_cells
from icrm_lib.lab.held_out import VALIDATION
from icrm_lib.lab.inputs import base_model, generator_workspace, settings_of, training_workspace
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
        purpose: what to measure, one of `cell.PURPOSES`.
        folder: where records lie; `cells_folder(profile, purpose)` when None.
        workers: processes; the number of cores when None. 0 runs the cells in this process.

    Returns:
        the record of every cell. A cell that fails is reported, the others still run, and then the first error is
        raised.
    """
    folder = folder or cells_folder(profile, purpose)
    paths = {cell: folder / f"{cell.name}.json" for cell in cells}
    settings = {cell: settings_of(profile, cell, tuned) for cell in paths}

    def waiting() -> list[Cell]:
        configs = {cell: cell_config(profile, cell, settings[cell], purpose) for cell in paths}
        return [cell for cell, path in paths.items() if not is_finished(path, configs[cell])]

    if waiting():
        with records.locked(folder):
            if still := waiting():  # not finished by another run meanwhile
                _make_what_they_share(profile, still, purpose)
                jobs = {cell: (profile, cell, settings[cell], paths[cell], purpose) for cell in still}
                _run_all(jobs, len(paths), os.cpu_count() or 1 if workers is None else workers)
    return paths


def _make_what_they_share(profile: Profile, cells: Iterable[Cell], purpose: str) -> None:
    wanted = {"base"}.union(*({cell.base, cell.generator} for cell in cells))
    for kind in ("base", "small", "under-trained", "double"):
        if kind in wanted:
            base_model(profile, kind)
    PURPOSES[purpose].prepare(profile)


def _run_all(jobs: dict[Cell, tuple], total: int, workers: int) -> None:
    failures = []
    with tqdm(total=total, initial=total - len(jobs), desc="cells", unit="cell", smoothing=0.05, mininterval=1) as bar:
        for cell, error in _in_processes(jobs, workers) if workers else _one_by_one(jobs):
            if error:  # the other cells are worth having, whatever went wrong with this one
                logger.error("cell %s failed: %s", cell.name, error)
                failures.append(error)
            bar.update()
    if failures:
        raise failures[0]


def _one_by_one(jobs: dict[Cell, tuple]) -> Iterator[tuple[Cell, Exception | None]]:
    for cell, job in jobs.items():
        try:
            run_cell(*job)
        except Exception as error:
            yield cell, error
        else:
            yield cell, None


def _in_processes(jobs: dict[Cell, tuple], workers: int) -> Iterator[tuple[Cell, BaseException | None]]:
    """The same in new processes of one thread each, which end with this one."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        shared = {(job[0], Cell("icrm", c.seed, data=c.data, pairs=c.pairs, base=c.base)) for c, job in jobs.items()}
        list(pool.map(_prepare, *zip(*shared, strict=True)))
        running = {pool.submit(run_cell, *job): cell for cell, job in jobs.items()}
        for future in as_completed(running):
            yield running[future], future.exception()


def start_worker() -> None:
    """Make a process a worker."""
    # One thread a process: two processes of one thread do more than two of two on two cores.
    os.environ["ICRM_UNATTENDED"] = "1"
    runtime.quiet()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    # A worker whose parent was killed would go on for hours, and beside the next run.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _prepare(profile: Profile, cell: Cell) -> None:
    """Make what the cells of one seed share, so that two workers never make it at once."""
    rows = training_workspace(profile, cell).tokenized["train"]
    for statistic in ("logprobs",) if cell.pairs else ("logprobs", "negentropies", "logmargins"):
        generator_workspace(profile, cell).add_logprobs(rows, statistic)


def tune(
    profile: Profile, cells: Iterable[Cell], *, folder: Path | None = None, workers: int | None = None
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
