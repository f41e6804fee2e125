"""Train and measure the cells of the evidence that are not recorded yet, into `results/<profile>/`.

python -m icrm_lib.cli.evidence --profile lab
"""

import argparse
import time

from icrm_lib import runtime

runtime.quiet()

import torch  # noqa: E402

from icrm_lib.lab.cells import purpose_of, studies  # noqa: E402
from icrm_lib.lab.grid import run_grid  # noqa: E402
from icrm_lib.lab.tuning import tune  # noqa: E402
from icrm_lib.profiles import load_profile  # noqa: E402


def main(arguments: list[str] | None = None) -> None:
    """Run all studies of a profile, or those named."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--profile", default="lab")
    parser.add_argument("--only", default="", help=f"studies, separated by commas: {', '.join(studies())}")
    options = parser.parse_args(arguments)
    profile, grid = load_profile(options.profile), studies()
    chosen = [name.strip() for name in options.only.split(",") if name.strip()] or list(grid)
    if unknown := sorted(set(chosen) - set(grid)):
        parser.error(f"unknown study {unknown[0]!r}; choose from {', '.join(grid)}")
    begin = time.monotonic()
    torch.set_num_threads(1)  # the base models are made here: with the threads of the workers, whatever the machine has
    tuned = tune(profile, [cell for name in chosen for cell in grid[name]])
    for purpose in dict.fromkeys(map(purpose_of, chosen)):
        cells = [cell for name in chosen if purpose_of(name) == purpose for cell in grid[name]]
        run_grid(profile, cells, tuned=tuned, purpose=purpose)
    print(f"{', '.join(chosen)}: finished after {(time.monotonic() - begin) / 60:.0f} min")


if __name__ == "__main__":
    main()
