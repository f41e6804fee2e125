"""Where the cells of a grid are computed: in processes of one machine, or on a cluster; joblib spreads them."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np

from icrm_lib import runtime
from icrm_lib.lab.worker import start_worker, work

ENGINES = ("loky", "ray", "dask")


class WorkerLost(RuntimeError):
    """A worker ended, or could not be reached, while it had cells to compute."""


@dataclass(frozen=True)
class Place:
    """Workers that are ready.

    Attributes:
        slots: how many cells are computed at a time.
        options: for `joblib.parallel_config`.
        work: what a worker runs; gets a `worker.Job`, and whatever `send` returned.
        send: makes the bytes of an artefact known to workers; None where they read the driver's disk.
    """

    slots: int
    options: dict[str, Any]
    work: Callable = work
    send: Callable[[np.ndarray], Any] | None = None

    def run(self, calls: Iterable[tuple], function: Callable | None = None) -> Iterator[Any]:
        """Yield what a function returns of each call's arguments, in the order in which they are finished.

        Args:
            calls: arguments; read one by one, about two a worker in advance.
            function: defined in a module; `work` when None.

        Raises:
            WorkerLost: a worker was lost, and with it what it was at; what the others were at is not yielded either.
        """
        # joblib computes in this process when it is given one worker: of two, one gets calls.
        jobs = 1 if self.options["backend"] == "sequential" else max(2, self.slots)
        ahead = 2 * self.slots if self.slots > 1 else 1
        with joblib.parallel_config(**self.options):
            parallel = joblib.Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=ahead, return_as="generator_unordered")
        own: list[Exception] = []
        try:
            yield from parallel(joblib.delayed(function or self.work)(*call) for call in _remembering(calls, own))
        except Exception as error:
            if own:
                raise own[0] from None
            raise WorkerLost(f"{type(error).__name__}: {error}") from error


def _remembering(calls: Iterable[tuple], errors: list[Exception]) -> Iterator[tuple]:
    """Yield the calls; an error of theirs is no worker's."""
    try:
        yield from calls
    except Exception as error:
        errors.append(error)
        raise


@dataclass(frozen=True)
class Engine:
    """Where cells are computed.

    Attributes:
        name: of `ENGINES`. "loky": processes of this machine. "ray": the cluster that RAY_ADDRESS names, or one of this
            machine alone. "dask": the cluster that DASK_SCHEDULER_ADDRESS names, or one of this machine alone.
        workers: cells at a time; None for as many as there are cores, in this machine or in the cluster. 0: in this
            process, one after the other.
        gpus: how much of a GPU a cell takes; 0 where cells are computed on processors. Ray gives every cell its GPU.
            Dask counts what its workers say they have (`--resources GPU=1`), and each sees what CUDA_VISIBLE_DEVICES
            of its start says. joblib's own processes all see this machine's first GPU, so loky computes no more cells
            at a time than fit on that one.

    Raises:
        ValueError: unknown name, or a number out of range.
    """

    name: str = "loky"
    workers: int | None = None
    gpus: float = 0.0

    def __post_init__(self):
        if self.name not in ENGINES:
            raise ValueError(f"unknown engine {self.name!r}; {runtime.nearest(self.name, list(ENGINES))}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"a grid cannot have {self.workers} workers; give 0 or more")
        if not 0 <= self.gpus <= 1:
            raise ValueError(f"a cell cannot take {self.gpus} of a GPU; give a share between 0 and 1")

    def place(self) -> Place:
        """Start what must be started, and say how many cells are computed at a time.

        Raises:
            ValueError: the engine is not installed, or its cluster has nothing for a cell.
        """
        if self.workers == 0:
            return Place(1, {"backend": "sequential"})
        if self.name == "loky":
            return self._processes()
        try:
            if self.name == "ray":
                from icrm_lib.lab.ray_cluster import place
            else:
                from icrm_lib.lab.dask_cluster import place
        except ImportError as error:
            raise ValueError(
                f"the engine {self.name!r} is not installed ({error}); pip install 'icrm_lib[cluster]' here and on "
                "every machine of the cluster, or take loky"
            ) from error
        return place(self.workers, self.gpus)

    def _processes(self) -> Place:
        slots = self.workers or os.cpu_count() or 1
        if self.gpus:
            slots = min(slots, int(1 / self.gpus))
        if slots == 1:
            return Place(1, {"backend": "sequential"})
        start = (str(runtime.project_root()), os.getpid())
        options = {"backend": "loky", "inner_max_num_threads": 1, "initializer": start_worker, "initargs": start}
        return Place(slots, options)


def local(workers: int | None) -> Place:
    """Return the processes of this machine, for what is made here whatever computes the cells."""
    return Engine(workers=workers).place()
