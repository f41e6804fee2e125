"""What a profile will take, before anything starts: parameters, tokens, FLOPs, memory, hours, files.

    python -m icrm_lib.cli.plan --profile gemma-2b-40k                 on this machine
    python -m icrm_lib.cli.plan --profile gemma-2b-40k --device 24     on a card of 24 GB (48, 80, 141 likewise)
    python -m icrm_lib.cli.plan --profile lab --method bt --json       another method, as one JSON object

`make plan` calls this. Nothing is downloaded or written. The hub is asked for nothing but the size of what is missing,
and only without HF_HUB_OFFLINE. Parameters, FLOPs and memory come from the formulas of `plan.costs`; tokens are
expected ones, so hours are a rough guess.

Exit status: 0 planned; 2 the command line or the profile names something that does not exist.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from icrm_lib import runtime

runtime.quiet()

from icrm_lib.plan import describe, make_plan  # noqa: E402
from icrm_lib.plan.machine import DEVICES  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see the module's text. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m icrm_lib.cli.plan", description="Say what a profile will take.")
    parser.add_argument("--profile", default="smoke", help="a file of profiles/ without its ending (smoke)")
    choices = f"{', '.join(DEVICES)} (memory of a card in GB) or this (measured; the default)"
    parser.add_argument("--device", default="this", help=choices)
    parser.add_argument("--method", default="icrm", help="a method of icrm_lib/methods.py (icrm)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options = parser.parse_args(arguments)
    try:
        plan = make_plan(options.profile, device=options.device, method=options.method)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(plan) if options.json else describe(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
