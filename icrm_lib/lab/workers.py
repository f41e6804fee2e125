"""Cells in several processes of one thread each; they end with the process that started them."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from icrm_lib import runtime
from icrm_lib.lab.cells import Cell
from icrm_lib.lab.inputs import generator_workspace, training_workspace
from icrm_lib.profiles import Profile


def in_processes(
    run: Callable, profile: Profile, jobs: dict[Cell, tuple], workers: int
) -> Iterator[tuple[Cell, BaseException | None]]:
    """Call `run(profile, cell, *job)` for every cell, in new processes.

    Yields:
        each cell as it is finished, and the error that it ended with.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker) as pool:
        shared = dict.fromkeys(Cell("icrm", c.seed, data=c.data, pairs=c.pairs, base=c.base) for c in jobs)
        list(pool.map(_prepare, [profile] * len(shared), shared))
        running = {pool.submit(run, profile, cell, *job): cell for cell, job in jobs.items()}
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
