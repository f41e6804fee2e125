"""Compute some cells on a Ray cluster of two machines, of which one is lost; see test_cluster.

    python tests/ray_driver.py FOLDER

Two machines of two cores each are started here. The second is lost when the first record is there. Prints one JSON
line: how many machines there were, how many records when one was lost, how many machines then.
"""

import json
import sys
import threading
import time
from pathlib import Path

from tiny import micro_grid

from icrm_lib.lab.cells import Cell
from icrm_lib.lab.grid import run_grid

CELLS = [Cell(method, seed) for seed in range(3) for method in ("bt", "icrm")] + [Cell("icrm", 0, generator="small")]


def main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    folder, counts = Path(sys.argv[1]), []
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    ray.init(cluster.address)

    def machines() -> int:
        return sum(node["Alive"] for node in ray.nodes())

    def lose() -> None:
        while not list(folder.glob("*.json")):
            time.sleep(0.1)
        counts.append(machines())
        counts.append(len(list(folder.glob("*.json"))))
        cluster.remove_node(second, allow_graceful=False)
        while machines() > 1:  # until the cluster has seen it
            time.sleep(0.1)
        counts.append(machines())

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    run_grid(micro_grid(), CELLS, tuned={}, folder=folder, engine="ray")
    thread.join()
    print(json.dumps(counts))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
