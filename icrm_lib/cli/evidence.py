"""Train and measure the cells of the evidence that are not recorded yet, into `results/<profile>/`.

python -m icrm_lib.cli.evidence --profile lab --only main,policy
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

from icrm_lib import runtime
from icrm_lib.lab.cells import purpose_of, studies
from icrm_lib.lab.engines import Engine
from icrm_lib.profiles import Profile, load_profile

COMMIT = "the commit's"  # the name of fresh records when none is given


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        profile: of the grid.
        chosen: names of studies.
        engine: where cells are computed.
        fresh: name of a folder of its own, in which every cell that it lacks is trained again; empty to go on with
            the records.
        design: compute nothing but what the planned seeds can decide.
    """

    profile: Profile
    chosen: list[str]
    engine: Engine
    fresh: str
    design: bool


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line; unknown names of profiles and studies are refused with the nearest."""
    parser = argparse.ArgumentParser(
        prog="python -m icrm_lib.cli.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="lab", help="a file of profiles/ without its ending (default: lab)")
    parser.add_argument("--only", default="", help=f"studies, separated by commas: {', '.join(studies())}")
    parser.add_argument("--engine", default="loky", help="where cells are computed: loky (this machine), ray, dask")
    parser.add_argument("--gpus", default=0.0, type=float, help="how much of a GPU a cell takes (default: 0)")
    parser.add_argument(
        "--fresh",
        nargs="?",
        const=COMMIT,
        default="",
        metavar="NAME",
        help="train every cell again that a folder of that name (the commit's when left out) lacks, and compare",
    )
    parser.add_argument(
        "--design", action="store_true", help="write design.json: what the seeds can decide, from the records so far"
    )
    options = parser.parse_args(arguments)
    known = list(studies())
    chosen = [name.strip() for name in options.only.split(",") if name.strip()] or known
    for name in chosen:
        if name not in known:
            parser.error(f"unknown study {name!r}; {runtime.nearest(name, known)}")
    try:
        engine = Engine(options.engine, gpus=options.gpus)
        return Options(load_profile(options.profile), chosen, engine, options.fresh, options.design)
    except ValueError as error:
        parser.error(str(error))


def main(arguments: list[str] | None = None) -> None:
    """Run all studies of a profile, or those named."""
    options = parse(arguments)
    if options.design:
        _design(options.profile.name)
        return
    runtime.quiet()
    import torch

    from icrm_lib.lab.cell import cells_folder
    from icrm_lib.lab.grid import run_grid
    from icrm_lib.lab.tuning import tune

    begin, grid, profile = time.monotonic(), studies(), options.profile
    torch.set_num_threads(1)  # the base models are made here: with the threads of the workers, whatever the machine has
    purposes = list(dict.fromkeys(map(purpose_of, options.chosen)))
    folders = {purpose: cells_folder(profile, purpose) for purpose in ["evidence", *purposes]}
    if options.fresh:
        folders = {purpose: _fresh(folder, options.fresh) for purpose, folder in folders.items()}
    where = {"engine": options.engine.name, "gpus": options.engine.gpus}
    wanted = [cell for name in options.chosen for cell in grid[name]]
    tuned = tune(profile, wanted, folder=folders["evidence"], **where)
    for purpose in purposes:
        cells = [cell for name in options.chosen if purpose_of(name) == purpose for cell in grid[name]]
        run_grid(profile, cells, tuned=tuned, purpose=purpose, folder=folders[purpose], **where)
    print(f"{', '.join(options.chosen)}: finished after {(time.monotonic() - begin) / 60:.0f} min")
    if options.fresh:
        for purpose in purposes:
            _compare(cells_folder(profile, purpose), folders[purpose])


def _fresh(folder: Path, name: str) -> Path:
    """The folder beside it for fresh records."""
    from icrm_lib import records

    name = records.environment()["commit"] if name == COMMIT else name
    return folder.parent / runtime.plain_name(f"fresh-{name}") / folder.name


def _design(profile: str) -> None:
    """Write what the planned seeds can decide, and the margins, from the records that there are."""
    from icrm_lib import records
    from icrm_lib.lab.cells import MAIN_SEEDS
    from icrm_lib.report.cells import load_cells
    from icrm_lib.report.design import ALIKE, PLANNED, design_table

    found = {"seeds": len(MAIN_SEEDS), "environment": records.environment()}
    for purpose, measures in PLANNED.items():
        table = design_table(load_cells(profile, purpose=purpose), ALIKE[purpose], measures, len(MAIN_SEEDS))
        print(table.round(3).to_string())
        found[purpose] = table.round(4).to_dict("index")
    records.write_json(runtime.project_root() / "results" / runtime.plain_name(profile) / "design.json", found)


def _compare(old: Path, new: Path) -> None:
    from icrm_lib.report.comparison import compare_folders

    print(f"\n{runtime.display_path(old)} and {runtime.display_path(new)}")
    try:
        print(compare_folders(old, new).to_string(index=False, float_format="{:.4g}".format))
    except ValueError as error:
        print(error)


if __name__ == "__main__":
    main()
