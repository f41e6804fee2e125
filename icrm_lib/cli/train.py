"""Train one reward model of a profile from the command line, on one device or several.

    python -m icrm_lib.cli.train --profile gemma-2b-40k
    python -m icrm_lib.cli.train --profile gemma-2b-400k --prepare && \
        accelerate launch --config_file configs/ddp.yaml -m icrm_lib.cli.train --profile gemma-2b-400k

What is there already is reused, and what was cut off goes on where it was: call it again.
"""

import argparse
import logging
import sys
from dataclasses import replace

from icrm_lib import runtime

runtime.quiet()

from accelerate import PartialState  # noqa: E402

from icrm_lib.lab.workspace import Workspace  # noqa: E402
from icrm_lib.methods import method_settings  # noqa: E402
from icrm_lib.profiles import RewardModelSettings, load_profile  # noqa: E402
from icrm_lib.training.config import reads_generator, statistic_of  # noqa: E402

FAILED = 1  # exit status when the data, the settings or a stage refuse


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; unknown profiles and methods are refused with the nearest known one."""
    parser = argparse.ArgumentParser(
        prog="python -m icrm_lib.cli.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="smoke", help="a file of profiles/ without its ending (default: smoke)")
    parser.add_argument("--method", default="icrm", help="one of icrm_lib.methods.METHODS (default: icrm)")
    parser.add_argument("--seed", type=int, default=0, help="of head, LoRA and data order (default: 0)")
    parser.add_argument("--preferences", default="", help="file or hub id instead of the profile's data")
    parser.add_argument("--base-model", default="", help="'scratch', directory or hub id instead of the profile's")
    parser.add_argument("--strict", action="store_true", help="refuse a file at its first bad row")
    parser.add_argument("--qlora", action="store_true", help="frozen weights in four bits (needs bitsandbytes)")
    parser.add_argument("--prepare", action="store_true", help="make data, generator and its answers, then stop")
    parser.add_argument("--output", default="", help="also save the model here")
    args = parser.parse_args(arguments)
    try:
        load_profile(args.profile)
        method_settings(RewardModelSettings(), args.method)
    except ValueError as error:
        parser.error(str(error))
    return args


def train(args: argparse.Namespace) -> None:
    """Make what `args` (see `parse`) ask for, and say where it is."""
    profile = load_profile(args.profile)
    if args.qlora:
        profile = replace(profile, reward_model=replace(profile.reward_model, quantization="4bit"))
    workspace = Workspace(profile, preferences=args.preferences, base_model=args.base_model, strict=args.strict)
    first = runtime.process_index() == 0
    train_split = workspace.tokenized["train"]
    if first:
        for report in workspace.reports:
            print(report)
        print(f"{len(train_split)} training pairs, {runtime.processes()} processes, {runtime.device_name()}")
    settings = method_settings(profile.reward_model, args.method)
    if args.prepare:
        print(f"base model in {runtime.display_path(workspace.base_model)}")
        if reads_generator(settings):
            workspace.add_logprobs(train_split, statistic_of(settings))
        workspace.lower_states(settings, train_split)
        print(f"prepared in {runtime.display_path(workspace.folder)}")
        return
    folder = workspace.reward_model_folder(args.method, args.seed)
    if first:
        print(f"reward model in {runtime.display_path(folder)}")
        if args.output:
            workspace.reward_model(args.method, args.seed).save_pretrained(args.output)
            print(f"saved to {runtime.display_path(args.output)}")
    if runtime.processes() > 1:
        PartialState().destroy_process_group()  # left to the end of the interpreter, its threads may abort it


def main() -> None:
    """Parse the command line and train; an error that names its remedy ends with one line instead of a traceback."""
    logging.basicConfig(level=logging.INFO if runtime.process_index() == 0 else logging.WARNING, format="%(message)s")
    args = parse()
    try:
        train(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        logging.getLogger(__name__).debug("", exc_info=True)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
