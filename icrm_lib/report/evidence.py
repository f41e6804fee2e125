"""What the cells of the evidence say: paired differences with intervals, corrected for their number, and verdicts.

Records in, numbers out; nothing is trained here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t

from icrm_lib import records, runtime
from icrm_lib.measures.pairs import Estimate
from icrm_lib.runtime import nearest

RESAMPLES = 4_000
ALPHA = 0.05
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
    "token agreement": ("agreement_by_prompt.sum", "agreement_by_prompt.count"),
    "agreement overall": ("tokens.agreement.overall",),
    "agreement, longer": ("longer_tokens.within",),
    "partial agreement": ("tokens.partial.within",),
    "calibration skill": ("tokens.calibration.skill",),
    "change at quality": ("tokens.quality.correlation",),
    "change ratio": ("tokens.quality.ratio",),
    "early": ("tokens.localisation.early",),
    "middle": ("tokens.localisation.middle",),
    "late": ("tokens.localisation.late",),
    "smoothness": ("tokens.smoothness.within",),
    "train seconds": ("seconds.train",),
}
# The same for cells of the other purposes: gold scores by test prompt, in points; tokens of a response; nats.
BUDGETS = ("40%", "50%", "60%", "70%", "80%")
POLICIES = ("reference", "dpo", "grpo_outcome", "grpo_tokens")
MEASURES |= {f"best of {n}": (f"gold.{n}",) for n in (1, 2, 4, 8, 16, 32, 64)}
MEASURES |= {f"tokens, best of {n}": (f"tokens.{n}",) for n in (1, 2, 4, 8, 16, 32, 64)}
EARLY = ("share", "gold", "full", "loss", "same_tokens")
MEASURES |= {f"early {budget}, {what}": (f"early.{budget}.{what}",) for budget in BUDGETS for what in EARLY}
JUDGED = ("greedy", "sampled", "tokens", "kl", "seconds", "pairs_right")
MEASURES |= {f"{policy}, {what}": (f"{policy}.{what}",) for policy in POLICIES for what in JUDGED}
# A difference whose whole interval is nearer to 0 than this counts as none: a point of accuracy, 0.03 of a correlation,
# a tenth of a point of the gold score.
ACCURACIES = (
    "accuracy on labels",
    "accuracy on noisier labels",
    "accuracy",
    "longer",
    "length reversed",
    "unseen verbs",
)
MARGINS = {measure: 0.01 if measure in ACCURACIES else 0.03 for measure in MEASURES}
IN_POINTS = (", gold", ", full", ", loss", ", same_tokens", ", greedy", ", sampled")
MARGINS |= {m: 0.1 for m in MEASURES if m.startswith("best of") or m.endswith(IN_POINTS)}


# Reading -------------------------------------------------------------------------------------------------------------


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
    results = runtime.project_root() / "results"
    folder = folder or results / runtime.plain_name(profile) / runtime.plain_name(purpose)
    command = command_for(profile, purpose)
    cells: dict[str, dict[int, dict]] = {}
    for path in sorted(folder.glob("*-seed_*.json")):
        variant, _, seed = path.stem.rpartition("-seed_")
        if int(seed) < TUNING:
            cells.setdefault(variant, {})[int(seed)] = records.read_json(path)
    if not cells:
        shown = runtime.display_path(folder)
        raise FileNotFoundError(f"no cells in {shown}; make them: {command}")
    for variant, runs in cells.items():
        keys = ([r["config"]["settings"], r["config"]["profile"], r["base_model"]] for r in runs.values())
        made = {records.fingerprint(key) for key in keys}
        if len(made) > 1:
            raise ValueError(
                f"the cells of {variant} were made with {len(made)} different settings, profiles or base models; "
                f"delete {variant}-seed_*.json in {runtime.display_path(folder)}, then: {command}"
            )
    return cells


def _field(record: dict, dotted: str) -> Any:
    value = record["metrics"]
    for key in dotted.split("."):
        if key not in value:
            raise ValueError(f"{dotted} is not in the record of {record['config']['cell']['method']}; leave it out")
        value = value[key]
    return np.nan if value is None else value


def _counts(runs: dict[int, dict], seeds: Sequence[int], measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators. Shape of both: (seeds, prompts), with one prompt for an undivided measure."""
    if measure not in MEASURES:
        raise ValueError(f"unknown measure {measure!r}; choose one of {', '.join(MEASURES)}")
    parts = [np.array([np.atleast_1d(_field(runs[s], name)) for s in seeds], dtype=float) for name in MEASURES[measure]]
    if bad := [seed for seed, row in zip(seeds, parts[0], strict=True) if not np.isfinite(row).all()]:
        raise ValueError(f"{measure} is not finite in the cells of seeds {bad}; leave the measure out, or the variant")
    return parts[0], parts[1] if len(parts) == 2 else np.ones_like(parts[0])


# Statistics ----------------------------------------------------------------------------------------------------------


class Difference(NamedTuple):
    """A paired difference of two variants in one measure.

    Attributes:
        first, second: means over the seeds that both have.
        difference: first - second with its 95 % interval.
        p: two-sided p-value; below 0.05 where the interval leaves out 0.
        seeds: how many pairs of seeds.
    """

    first: float
    second: float
    difference: Estimate
    p: float
    seeds: int


def estimate(runs: dict[int, dict], measure: str) -> Estimate:
    """Mean of a variant over its seeds, with a 95 % interval over seeds and prompts (the point itself for one seed)."""
    sides = [_counts(runs, sorted(runs), measure)]
    value = float(_means(sides)[0])
    if len(runs) < 2:
        return Estimate(value, value, value)
    half = t.ppf(1 - ALPHA / 2, len(runs) - 1) * _standard_error(sides)
    lowest, highest = (0.0, 1.0) if measure in ACCURACIES else (-np.inf, np.inf)
    return Estimate(value, max(lowest, float(value - half)), min(highest, float(value + half)))


def compare(first: dict[int, dict], second: dict[int, dict], measure: str) -> Difference:
    """Compare two variants on the seeds that both have: the same training pairs, the same test pairs.

    The standard error comes from paired bootstraps, over seeds, over prompts, and over both (`_standard_error`);
    interval and p-value from Student's t with seeds - 1 degrees of freedom. For a measure that is not divided by prompt
    this is the paired t-test over seeds.

    Args:
        first, second: seed -> record.
        measure: one of `MEASURES`.

    Raises:
        ValueError: fewer than two common seeds, or a value that is not finite.
    """
    seeds = sorted(first.keys() & second.keys())
    if len(seeds) < 2:
        raise ValueError(f"{len(seeds)} common seeds; a paired comparison needs at least 2: make evidence")
    sides = [_counts(runs, seeds, measure) for runs in (first, second)]
    means = _means(sides)
    value, error = float(means[0] - means[1]), _standard_error(sides)
    if error < 1e-12:  # the same in every cell
        return Difference(*map(float, means), Estimate(value, value, value), float(abs(value) < 1e-12), len(seeds))
    half = t.ppf(1 - ALPHA / 2, len(seeds) - 1) * error
    p = 2 * t.sf(abs(value) / error, len(seeds) - 1)
    return Difference(
        *map(float, means), Estimate(value, float(value - half), float(value + half)), float(p), len(seeds)
    )


def _means(sides: list[tuple[np.ndarray, np.ndarray]]) -> list[float]:
    return [top.sum() / bottom.sum() for top, bottom in sides]


def _standard_error(sides: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Standard error of the mean (one side) or of the difference (two), seeds and prompts being crossed.

    A bootstrap of seeds has the variance V_seed + V_noise, one of prompts V_prompt + V_noise, one of both about
    V_seed + V_prompt + 3 V_noise (Owen, Annals of Applied Statistics 2007). Wanted is V_seed + V_prompt + V_noise: the
    first two together, less what the third has beyond them.
    """
    rng = np.random.default_rng(0)
    n_seeds, n_prompts = sides[0][0].shape
    seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), RESAMPLES)
    prompts = rng.multinomial(n_prompts, np.full(n_prompts, 1 / n_prompts), RESAMPLES)

    def variance(by_seed: np.ndarray, by_prompt: np.ndarray) -> float:
        drawn = [
            ((by_seed @ top) * by_prompt).sum(1) / ((by_seed @ bottom) * by_prompt).sum(1) for top, bottom in sides
        ]
        return float(np.var(drawn[0] - drawn[1] if len(drawn) == 2 else drawn[0]))

    of_seeds = variance(seeds, np.ones((1, n_prompts)))
    if n_prompts == 1:
        return float(np.sqrt(of_seeds * n_seeds / (n_seeds - 1)))
    of_prompts = variance(np.ones((1, n_seeds)), prompts)
    noise = max(0.0, variance(seeds, prompts) - of_seeds - of_prompts)
    of_seeds, of_prompts = of_seeds * n_seeds / (n_seeds - 1), of_prompts * n_prompts / (n_prompts - 1)
    return float(np.sqrt(max(of_seeds, of_seeds + of_prompts - noise)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction (Scandinavian Journal of Statistics, 1979).

    Args:
        p_values: of one family of tests. Length N.

    Returns:
        adjusted p-values, at most 1. Shape: (N,).
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


# The twelve objections -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contrast:
    """Two variants that are compared to answer an objection.

    Attributes:
        objection: number of the reviewers' objection.
        first, second: variants.
        measures: members of `MEASURES`.
    """

    objection: int
    first: str
    second: str
    measures: tuple[str, ...]


BOTH = ("accuracy", "token agreement")
CONTRASTS = (
    Contrast(1, "icrm", "icrm_uniform", ("smoothness",)),
    Contrast(1, "icrm_uniform", "bt", ("smoothness",)),
    *(Contrast(2, "icrm", other, ("partial agreement",)) for other in ("bt", "grm_as_in_icrm", "icrm_uniform")),
    *(
        Contrast(3, "icrm", other, (*BOTH, "change at quality", "calibration skill"))
        for other in ("icrm_uniform", "icrm_shuffled")
    ),
    Contrast(3, "icrm", "icrm_random_pairs", BOTH),
    Contrast(3, "icrm_uniform", "bt", BOTH),
    *(Contrast(4, "icrm", other, BOTH) for other in ("icrm_plain_log", "icrm_l1", "icrm_l2", "martingale")),
    *(Contrast(4, "icrm", other, BOTH) for other in ("icrm_not_centered", "icrm_centered_on_positions")),
    *(Contrast(5, "icrm", other, BOTH) for other in ("icrm_entropy", "icrm_top1_margin", "icrm_inverted")),
    *(
        Contrast(6, f"icrm-{name}", "icrm", BOTH)
        for name in (
            *("exact", "temperature_0.5", "temperature_2", "small", "under-trained", "another_language", "unigram"),
        )
    ),
    *(Contrast(7, "icrm", other, (*BOTH, "longer", "unseen verbs")) for other in ("bt", "grm_sft")),
    Contrast(8, "icrm", "bt-double", (*BOTH, "longer")),
    Contrast(9, "icrm", "bt", ("early", "middle", "late")),
    *(Contrast(10, "icrm", other, BOTH) for other in ("implicit", "prm_noisy", "prm")),
    Contrast(10, "prm_icrm", "prm", BOTH),
    Contrast(10, "prm_noisy_icrm", "prm_noisy", BOTH),
    *(Contrast(12, f"{m}-6400_pairs", m, ("accuracy",)) for m in ("bt", "grm_sft", "icrm")),
    *(Contrast(12, f"icrm-{n}_pairs", f"bt-{n}_pairs", ("accuracy",)) for n in (100, 1600, 6400)),
)


def contrasts_table(cells: dict[str, dict[int, dict]], contrasts: Sequence[Contrast] = CONTRASTS) -> pd.DataFrame:
    """Test every contrast in every one of its measures; the tests of one objection are one family.

    Args:
        cells: of `load_cells`.
        contrasts: what to compare. Holm's correction counts all of an objection's tests, those included whose cells
            are not there yet.

    Returns:
        one row a contrast and measure: `objection`, `first`, `second`, `measure`, the two means, `difference`, `low`,
        `high`, `seeds`, `p`, `p_holm` and `verdict` on `first`: "higher" or "lower" where `p_holm` is below 0.05,
        "same" where the whole interval is within `MARGINS` of zero, else "undecided". Contrasts with fewer than two
        common seeds are left out.
    """
    rows = []
    for contrast in contrasts:
        first, second = cells.get(contrast.first, {}), cells.get(contrast.second, {})
        for measure in contrast.measures:
            row = {"objection": contrast.objection, "first": contrast.first, "second": contrast.second}
            row |= {"measure": measure, "p": 1.0, "seeds": len(first.keys() & second.keys())}
            if row["seeds"] > 1:
                d = compare(first, second, measure)
                value, low, high = d.difference
                row |= {"mean first": d.first, "mean second": d.second, "difference": value, "low": low, "high": high}
                row |= {"p": d.p}
            rows.append(row)
    order = ["objection", "first", "second", "measure", "mean first", "mean second", "difference", "low", "high"]
    table = pd.DataFrame(rows, columns=[*order, "seeds", "p"])
    table["p_holm"] = table.groupby("objection")["p"].transform(lambda p: holm(p))
    table = table[table["seeds"] > 1].reset_index(drop=True)
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    return table


def _verdict(row: dict) -> str:
    if row["p_holm"] < ALPHA:
        return "higher" if row["difference"] > 0 else "lower"
    return "same" if max(abs(row["low"]), abs(row["high"])) < MARGINS[row["measure"]] else "undecided"


def summary_table(cells: dict[str, dict[int, dict]], variants: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """Mean and interval of several variants, as text; the index is the variant, the first column the number of seeds.

    Raises:
        ValueError: a variant without cells; the message names the nearest.
    """
    rows = {}
    for variant in variants:
        if variant not in cells:
            raise ValueError(f"no cells of {variant!r}; {nearest(variant, list(cells))}")
        rows[variant] = {"seeds": len(cells[variant])} | {m: _shown(cells[variant], m) for m in measures}
    return pd.DataFrame.from_dict(rows, orient="index")


def _shown(runs: dict[int, dict], measure: str) -> str:
    value, low, high = estimate(runs, measure)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if len(runs) > 1 else f"{value:.3f}"
