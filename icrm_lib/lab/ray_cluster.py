"""Cells on a Ray cluster, through Ray's backend of joblib: its workers get the driver's code and share no disk."""

import math
from pathlib import Path

import joblib
import ray
from ray.util.joblib.ray_backend import RayBackend

import icrm_lib
from icrm_lib.lab.engines import Place
from icrm_lib.lab.worker import work_on_ray


class _RayBackend(RayBackend):
    # Ray says when a task is done, unlike the pool of processes whose backend its own one is made from: results come
    # one by one, and a driver that is killed has written those that were finished.
    supports_return_generator = True


def place(workers: int | None, gpus: float) -> Place:
    """Return the workers of the cluster that this process is connected to, or connects to now.

    Args:
        workers: at most so many; None for as many as the cluster has cores and GPUs for.
        gpus: how much of a GPU each takes.

    Raises:
        ValueError: the cluster has no core, or no GPU for a cell.
    """
    if not ray.is_initialized():
        # The address is that of RAY_ADDRESS, or of a cluster that was started on this machine.
        ray.init(runtime_env={"py_modules": [str(Path(icrm_lib.__file__).parent)]}, log_to_driver=False)
    slots = _slots(gpus)
    if not slots:
        raise ValueError(
            f"the Ray cluster has {ray.cluster_resources()}, which is nothing for a cell that takes a core and {gpus} "
            "of a GPU; start it with more, or ask for less"
        )
    slots = min(slots, workers or slots)
    joblib.register_parallel_backend("icrm_ray", _RayBackend)
    share = slots / max(2, slots)  # two workers hold what one may take, and one of them computes
    options = {"num_cpus": share, "num_gpus": gpus * share, "scheduling_strategy": "SPREAD"}
    return Place(slots, {"backend": "icrm_ray", "ray_remote_args": options}, work_on_ray, ray.put)


def _slots(gpus: float) -> int:
    """How many cells fit, machine by machine: a cell's core and its GPU are of one."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    each = [(machine.get("CPU", 0.0), machine.get("GPU", 0.0)) for machine in machines]
    return sum(int(min(cores, math.floor(cards) * int(1 / gpus) if gpus else cores)) for cores, cards in each)
