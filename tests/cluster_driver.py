"""Compute some cells on a cluster of two machines or workers, of which one is lost; see test_cluster.

    python tests/cluster_driver.py ray|dask FOLDER

The cluster is started here. The second machine is lost when the first record is there. Prints one JSON line: how many
there were, how many records when one was lost, how many were left then.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tiny import micro_grid

from icrm_lib.lab.cells import Cell
from icrm_lib.lab.grid import run_grid

CELLS = [Cell(method, seed) for seed in range(3) for method in ("bt", "icrm")] + [Cell("icrm", 0, generator="small")]


def start_ray() -> tuple[Callable[[], int], Callable[[], None]]:
    """Return what counts the machines, and what loses one: two of two cores each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    ray.init(cluster.address)
    atexit.register(cluster.shutdown)  # else the next one on this machine looks for it
    return lambda: sum(n["Alive"] for n in ray.nodes()), lambda: cluster.remove_node(second, allow_graceful=False)


def start_dask() -> tuple[Callable[[], int], Callable[[], None]]:
    """The same of two workers, each with a process of its own that nobody starts again."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=0, dashboard_address=None)
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    options = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
    workers = [subprocess.Popen(command + options) for _ in range(2)]
    atexit.register(workers[0].kill)
    client = Client(cluster)
    client.wait_for_workers(2)
    return lambda: len(client.nthreads()), lambda: os.kill(workers[1].pid, signal.SIGKILL)


def main() -> None:
    engine, folder, counts = sys.argv[1], Path(sys.argv[2]), []
    machines, lose = {"ray": start_ray, "dask": start_dask}[engine]()

    def wait_and_lose() -> None:
        while not list(folder.glob("*.json")):
            time.sleep(0.1)
        counts.extend([machines(), len(list(folder.glob("*.json")))])
        lose()
        while machines() > 1:  # until the cluster has seen it
            time.sleep(0.1)
        counts.append(machines())

    thread = threading.Thread(target=wait_and_lose, daemon=True)
    thread.start()
    run_grid(micro_grid(), CELLS, tuned={}, folder=folder, engine=engine)
    thread.join()
    print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
