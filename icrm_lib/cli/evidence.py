"""Train and measure the cells of the evidence that are not recorded yet, into `results/<profile>/`.

python -m icrm_lib.cli.evidence --profile lab --only main,policy
"""

import argparse
import time

from icrm_lib import runtime
from icrm_lib.lab.cells import purpose_of, studies
from icrm_lib.profiles import Profile, load_profile


def parse(arguments: list[str] | None = None) -> tuple[Profile, list[str]]:
    """Read the command line: the profile, and the names of the studies; unknown ones are refused with the nearest."""
    parser = argparse.ArgumentParser(
        prog="python -m icrm_lib.cli.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--profile", default="lab", help="a file of profiles/ without its ending (default: lab)")
    parser.add_argument("--only", default="", help=f"studies, separated by commas: {', '.join(studies())}")
    options = parser.parse_args(arguments)
    known = list(studies())
    chosen = [name.strip() for name in options.only.split(",") if name.strip()] or known
    for name in chosen:
        if name not in known:
            parser.error(f"unknown study {name!r}; {runtime.nearest(name, known)}")
    try:
        return load_profile(options.profile), chosen
    except ValueError as error:
        parser.error(str(error))


def main(arguments: list[str] | None = None) -> None:
    """Run all studies of a profile, or those named."""
    profile, chosen = parse(arguments)
    runtime.quiet()
    import torch

    from icrm_lib.lab.grid import run_grid, tune

    begin, grid = time.monotonic(), studies()
    torch.set_num_threads(1)  # the base models are made here: with the threads of the workers, whatever the machine has
    tuned = tune(profile, [cell for name in chosen for cell in grid[name]])
    for purpose in dict.fromkeys(map(purpose_of, chosen)):
        cells = [cell for name in chosen if purpose_of(name) == purpose for cell in grid[name]]
        run_grid(profile, cells, tuned=tuned, purpose=purpose)
    print(f"{', '.join(chosen)}: finished after {(time.monotonic() - begin) / 60:.0f} min")


if __name__ == "__main__":
    main()
