"""Execute the notebooks in order, with parameters that are checked before anything runs.

    python -m icrm_lib.cli.run                                    every notebook, profile smoke, into runs/smoke/
    python -m icrm_lib.cli.run --profile lab --only 02,04         two of them, another profile
    python -m icrm_lib.cli.run --only 04 -p SEED 3                one of them, another seed
    python -m icrm_lib.cli.run --refresh                          renew the outputs stored in notebooks/

`make run` and `make refresh` call this. papermill does the executing; on its own it would only warn about a
parameter that no notebook has and then run the default, so the names and types are checked here first.

Exit status: 0 all notebooks ran; 1 a cell failed (its source and traceback are printed); 2 the command line
names something that does not exist, and nothing was run; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from icrm_lib.cli.execution import RunError, execute_all, prepare_environment, refresh
from icrm_lib.cli.notebooks import UsageError, assign, find_notebooks, select
from icrm_lib.profiles import check_profile
from icrm_lib.runtime import project_root


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """Run the command line; see the module's text.

    Args:
        arguments: without the program's name; those of the process when None.
        root: the project root; found from the working directory when None.

    Returns:
        the exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m icrm_lib.cli.run", description="Execute the notebooks in order.")
    parser.add_argument("--profile", default="smoke", help="a file of profiles/ without its ending (smoke)")
    parser.add_argument("--only", metavar="04[,05]", help="only these notebooks, by number or name")
    parser.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="assignments",
        help="set a parameter in every notebook that declares it; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--refresh", action="store_true", help="run with the defaults and store the outputs in notebooks/"
    )
    options = parser.parse_args(arguments)
    try:
        if options.refresh and (options.assignments or options.profile != "smoke"):
            raise UsageError("stored outputs are those of the defaults: --refresh takes neither -p nor --profile")
        root = root or project_root()
        check_profile(options.profile, root / "profiles")
        prepare_environment(options.profile, refresh=options.refresh)
        if options.refresh:
            refresh(root, options.only)
        else:
            notebooks = select(find_notebooks(root), options.only)
            parameters = assign(notebooks, options.profile, options.assignments)
            execute_all(notebooks, root / "runs" / options.profile, parameters, root)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
