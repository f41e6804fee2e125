"""Records of cells: how they are read, what each measure of them is, and two variants compared."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from icrm_lib import records, runtime
from icrm_lib.measures.statistics import Difference, Estimate, Side, crossed_mean, paired_difference

TUNING = 100  # seeds from here on only chose settings
# Measure -> where it stands in a record. Two names: numerator and denominator by test prompt. Accuracies count by the
# gold score, pairs of equal score left out, except the two that say otherwise.
MEASURES: dict[str, tuple[str, ...]] = {
    "accuracy on labels": ("accuracy.in_distribution.right", "accuracy.in_distribution.count"),
    "accuracy on noisier labels": ("accuracy.noisier.right", "accuracy.noisier.count"),
    "accuracy": ("accuracy.in_distribution.gold_right", "accuracy.in_distribution.gold_count"),
    "longer": ("accuracy.longer.gold_right", "accuracy.longer.gold_count"),
    "length reversed": ("accuracy.length_reversed.gold_right", "accuracy.length_reversed.gold_count"),
    "unseen verbs": ("accuracy.unseen_verbs.gold_right", "accuracy.unseen_verbs.gold_count"),
}
# Of token rewards, read where the tokens stand. With ", closing" behind the name: read with the closing token put
# behind each prefix, which lies one level deeper.
TOKENS: dict[str, tuple[str, ...]] = {
    "token agreement": ("agreement_by_prompt.sum", "agreement_by_prompt.count"),
    "agreement with E[gold]": ("expected_by_prompt.sum", "expected_by_prompt.count"),
    "agreement with the running score": ("running_by_prompt.sum", "running_by_prompt.count"),
    "agreement overall": ("tokens.agreement.overall",),
    "agreement, longer": ("longer_tokens.within",),
    "partial agreement": ("tokens.partial.within",),
    "calibration skill": ("tokens.calibration.skill",),
    "change at quality": ("tokens.quality.correlation",),
    "change ratio": ("tokens.quality.ratio",),
    "change AUC": ("tokens.changes.all",),
    "change AUC, unlikely": ("tokens.changes.unlikely",),
    "change direction": ("tokens.changes.direction",),
    "early": ("tokens.localisation.early",),
    "middle": ("tokens.localisation.middle",),
    "late": ("tokens.localisation.late",),
    "smoothness": ("tokens.smoothness.within",),
}
CLOSING = ", closing"
MEASURES |= TOKENS
MEASURES |= {f"{name}{CLOSING}": tuple(f"closing.{field}" for field in fields) for name, fields in TOKENS.items()}
MEASURES["train seconds"] = ("seconds.train",)
# The same for cells of the other purposes: gold scores by test prompt, in points; tokens of a response; nats.
BUDGETS = ("40%", "50%", "60%", "70%", "80%")
POLICIES = ("reference", "dpo", "grpo_outcome", "grpo_tokens")
MEASURES |= {f"best of {n}": (f"gold.{n}",) for n in (1, 2, 4, 8, 16, 32, 64)}
MEASURES |= {f"tokens, best of {n}": (f"tokens.{n}",) for n in (1, 2, 4, 8, 16, 32, 64)}
EARLY = ("share", "gold", "full", "loss", "same_tokens")
for _ending, _field_of in (("", "early"), (CLOSING, "early_closing")):
    MEASURES |= {f"early {b}, {what}{_ending}": (f"{_field_of}.{b}.{what}",) for b in BUDGETS for what in EARLY}
JUDGED = ("greedy", "sampled", "tokens", "kl", "seconds", "pairs_right")
MEASURES |= {f"{policy}, {what}": (f"{policy}.{what}",) for policy in POLICIES for what in JUDGED}
# A difference whose whole interval is nearer to 0 than this counts as none: a point of accuracy, 0.03 of a correlation,
# a tenth of a point of the gold score.
ACCURACIES = tuple(measure for measure, (field, *_) in MEASURES.items() if field.startswith("accuracy."))
MARGINS = {measure: 0.01 if measure in ACCURACIES else 0.03 for measure in MEASURES}
IN_POINTS = (", gold", ", full", ", loss", ", same_tokens", ", greedy", ", sampled")
MARGINS |= {m: 0.1 for m in MEASURES if m.startswith("best of") or m.removesuffix(CLOSING).endswith(IN_POINTS)}


def command_for(profile: str, purpose: str) -> str:
    """Return the command that makes the cells of a purpose."""
    return f"make evidence PROFILE={profile}" + (f" ONLY={purpose}" if purpose != "evidence" else "")


def load_cells(
    profile: str, folder: Path | None = None, *, purpose: str = "evidence"
) -> dict[str, dict[int, dict[str, Any]]]:
    """Read all cells of a profile that are evidence, not tuning.

    Args:
        profile: its name.
        folder: where the records lie; `results/<profile>/<purpose>` when None.
        purpose: what the cells measure: "evidence", "best_of_n" or "policy".

    Returns:
        variant (a cell's name without its seed, e.g. "icrm" or "icrm-exact") -> seed -> record.

    Raises:
        FileNotFoundError: there is none; the message names the command that makes them.
        ValueError: cells of one variant were made with different settings, profiles or base models; or a name that
            leads out of `results`.
    """
    folder = folder or runtime.project_root().joinpath("results", *map(runtime.plain_name, (profile, purpose)))
    command = command_for(profile, purpose)
    cells: dict[str, dict[int, dict]] = {}
    for path in sorted(folder.glob("*-seed_*.json")):
        variant, _, seed = path.stem.rpartition("-seed_")
        if int(seed) < TUNING:
            cells.setdefault(variant, {})[int(seed)] = records.read_json(path)
    if not cells:
        raise FileNotFoundError(f"no cells in {runtime.display_path(folder)}; make them: {command}")
    for variant, runs in cells.items():
        keys = ([r["config"]["settings"], r["config"]["profile"], r["base_model"]] for r in runs.values())
        made = {records.fingerprint(key) for key in keys}
        if len(made) > 1:
            raise ValueError(
                f"the cells of {variant} were made with {len(made)} different settings, profiles or base models; "
                f"delete {variant}-seed_*.json in {runtime.display_path(folder)}, then: {command}"
            )
    return cells


def estimate(runs: dict[int, dict], measure: str) -> Estimate:
    """Mean of a variant over its seeds, with a 95 % interval over seeds and prompts (the point itself for one seed).

    Args:
        runs: seed -> record.
        measure: one of `MEASURES`.
    """
    bounds = (0.0, 1.0) if measure in ACCURACIES else (-np.inf, np.inf)
    return crossed_mean(_counts(runs, sorted(runs), measure), bounds=bounds)


def compare(first: dict[int, dict], second: dict[int, dict], measure: str) -> Difference:
    """Compare two variants on the seeds that both have: the same training pairs, the same test pairs.

    Args:
        first, second: seed -> record.
        measure: one of `MEASURES`.

    Raises:
        ValueError: fewer than two common seeds, or a value that is not finite.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        raise ValueError(f"{len(seeds)} common seeds; a paired comparison needs at least 2: make evidence")
    return paired_difference(*(_counts(runs, seeds, measure) for runs in (first, second)))


def _field(record: dict, dotted: str) -> Any:
    value = record["metrics"]
    for key in dotted.split("."):
        if key not in value:
            raise ValueError(f"{dotted} is not in the record of {record['config']['cell']['method']}; leave it out")
        value = value[key]
    return np.nan if value is None else value


def _counts(runs: dict[int, dict], seeds: Sequence[int], measure: str) -> Side:
    """Numerators and denominators. Shape of both: (seeds, prompts), with one prompt for an undivided measure."""
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}; choose one of {', '.join(MEASURES)}")
    parts = [np.array([np.atleast_1d(_field(runs[s], name)) for s in seeds], dtype=float) for name in MEASURES[measure]]
    if bad := [seed for seed, row in zip(seeds, parts[0], strict=True) if not np.isfinite(row).all()]:
        raise ValueError(f"{measure} is not finite in the cells of seeds {bad}; leave the measure out, or the variant")
    return parts[0], parts[1] if len(parts) == 2 else np.ones_like(parts[0])
