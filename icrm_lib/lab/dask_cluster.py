"""Cells on a Dask cluster, through joblib's backend for it: its workers have the package, and share no disk."""

import os

import joblib
from distributed import Client, get_client
from joblib._dask import DaskDistributedBackend

from icrm_lib.lab.engines import Place
from icrm_lib.lab.worker import work_elsewhere


class _DaskBackend(DaskDistributedBackend):
    def effective_n_jobs(self, n_jobs: int) -> int:
        return max(2, super().effective_n_jobs(n_jobs))  # joblib would compute the cells of a single worker here


def place(workers: int | None, gpus: float) -> Place:
    """Return the workers of the cluster that this process is connected to, or connects to now.

    Args:
        workers: at most so many; None for all that the cluster has.
        gpus: how much of the resource GPU of its worker each cell takes.

    Raises:
        ValueError: a worker computes several cells in one process, or none has a GPU for a cell.
    """
    client = _client(workers)
    threads = client.nthreads()
    if any(count > 1 for count in threads.values()):
        raise ValueError(
            "the Dask cluster has workers of several threads, and cells cannot share a process; start them with "
            "--nthreads 1 --nworkers N"
        )
    asked = {"resources": {"GPU": gpus}} if gpus else {}
    known = client.scheduler_info(n_workers=-1)["workers"].values()
    each = [worker["resources"].get("GPU", 0.0) >= gpus for worker in known]
    slots = min(sum(each), workers or len(each))
    if not slots:
        raise ValueError(
            f"no worker of the Dask cluster has {gpus} of a GPU; start them with --resources GPU=1, or ask for less"
        )
    joblib.register_parallel_backend("icrm_dask", _DaskBackend)
    return Place(slots, {"backend": "icrm_dask", "client": client, **asked}, work_elsewhere, lambda packed: packed)


def _client(workers: int | None) -> Client:
    try:
        return get_client()
    except ValueError:  # none yet
        address = os.environ.get("DASK_SCHEDULER_ADDRESS")
        client = Client(address) if address else Client(n_workers=workers, threads_per_worker=1)
    client.wait_for_workers(1, timeout=60)
    return client
