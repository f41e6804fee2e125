"""Predict on tables, language by language, when a generator's probabilities help, into `results/phase/`.

python -m icrm_lib.cli.phase --stage tabular --workers 2

Languages that are recorded are not run again. When all are there, `prediction.json` is written: what the neural stage
is expected to show, and on which languages it is to be run.
"""

import argparse
import time

from icrm_lib import runtime

STAGES = ("tabular",)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; an unknown language is refused with the nearest."""
    parser = argparse.ArgumentParser(
        prog="python -m icrm_lib.cli.phase",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", default="tabular", choices=STAGES, help="what to run (default: tabular)")
    parser.add_argument("--only", default="", help="languages, separated by commas; all 54 without")
    parser.add_argument("--workers", default=1, type=int, help="processes, one thread each (default: 1)")
    parser.add_argument("--fresh", action="store_true", help="run recorded languages again, too")
    options = parser.parse_args(arguments)
    from icrm_lib.phase.languages import phase_languages

    known = list(phase_languages())
    options.only = [name.strip() for name in options.only.split(",") if name.strip()] or known
    for name in options.only:
        if name not in known:
            parser.error(f"unknown language {name!r}; {runtime.nearest(name, known)}")
    if options.workers < 1:
        parser.error(f"--workers {options.workers}: must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Run the languages that are not recorded, and write the prediction when all are."""
    options = parse(arguments)
    runtime.quiet()
    from tqdm.auto import tqdm

    from icrm_lib.lab.phase import is_finished, made_by_other_code, run_languages, write_prediction
    from icrm_lib.phase import phase_languages

    begin = time.monotonic()
    done = list(tqdm(run_languages(options.only, workers=options.workers, fresh=options.fresh), unit="language"))
    left = [name for name in phase_languages() if not is_finished(name)]
    print(f"{len(done)} languages in {(time.monotonic() - begin) / 60:.0f} min, {len(left)} still to run")
    if older := made_by_other_code(set(options.only) - set(left)):
        print(f"{len(older)} records were made by other code; --fresh makes them again")
    if not left:
        print(runtime.display_path(write_prediction()))


if __name__ == "__main__":
    main()
