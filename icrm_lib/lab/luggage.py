"""What cells share is made once, by the driver of a grid; to workers without its disk it is sent along."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from icrm_lib import runtime
from icrm_lib.lab.cell import PURPOSES
from icrm_lib.lab.engines import Place, local
from icrm_lib.lab.inputs import artefacts_read, base_model, weights_read
from icrm_lib.lab.worker import Job, archive

logger = logging.getLogger(__name__)


class Luggage:
    """What lies on the driver's disk, by cell.

    Args:
        paths: what the cells of each `_sharing` read.
        common: what all read.
    """

    def __init__(self, paths: dict[Any, list[Path]], common: list[Path]):
        self.paths, self.common = paths, common
        self._sent: dict[Path, Any] = {}

    def calls(self, jobs: Iterable[Job], place: Place) -> Iterator[tuple]:
        """Yield the arguments of `place.work` for each job."""
        for job in jobs:
            if place.send is None:
                yield (job,)
                continue
            root = runtime.project_root()
            paths = sorted(path for path in {*self.common, *self.paths.get(_sharing(job), [])} if path.exists())
            names = tuple(path.relative_to(root).as_posix() for path in paths)
            yield replace(job, names=names), *(self._send(path, place) for path in paths)

    def _send(self, path: Path, place: Place) -> Any:
        if path not in self._sent:
            self._sent[path] = place.send(archive(path))
        return self._sent[path]


def pack(jobs: list[Job], workers: int | None) -> Luggage:
    """Make what several cells share: base models, generators and their answers, and what their purpose wants.

    Args:
        jobs: of one profile and purpose.
        workers: processes of this machine that make it; None for as many as there are cores.
    """
    profile = jobs[0].profile
    for kind in ("base", "small", "under-trained", "double"):
        if kind in {"base"}.union(*({job.cell.base, job.cell.generator} for job in jobs)):
            base_model(profile, kind)
    common = PURPOSES[jobs[0].purpose].prepare(profile)
    sharing = {_sharing(job): job for job in jobs}
    if workers == 0:  # one process makes each when it first wants it
        return Luggage({}, common)
    found = local(workers).run(((key, job) for key, job in sharing.items()), _prepare)
    return Luggage(dict(found), common)


def _sharing(job: Job) -> tuple:
    """What cells have in common that read the same of the disk."""
    cell = job.cell
    return cell.seed, cell.data, cell.pairs, cell.base, *weights_read(cell, job.settings)


def _prepare(key: tuple, job: Job) -> tuple[tuple, list[Path]]:
    try:
        return key, artefacts_read(job.profile, job.cell, job.settings)
    except Exception as error:  # the cell will say so itself, and the others go on
        logger.info("%s: %s", job.cell.name, error)
        return key, []
