"""How many seeds a comparison takes: fixed from the spread of earlier records, before the new ones are made."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy.stats import norm, t

from icrm_lib.report.cells import ACCURACIES, CLOSING, IN_POINTS, compare

# Equal variants are compared with these, none of which is known to differ in anything.
ALIKE = {"evidence": (("icrm", "icrm_uniform"), ("icrm", "icrm_shuffled")), "best_of_n": (("icrm", "icrm_uniform"),)}
PLANNED = {
    "evidence": (
        *("accuracy", "longer", "length reversed", "unseen verbs", "token agreement", "agreement overall"),
        *("agreement, longer", "partial agreement", "calibration skill", "change at quality", "change ratio"),
        *("early", "middle", "late", "smoothness"),
    ),
    "best_of_n": ("best of 16", "best of 64", "early 50%, loss", "early 50%, gold"),
}


def planned_margin(measure: str) -> float:
    """Return the difference below which two variants count as equal in the coming records.

    A point of accuracy in distribution and two elsewhere; 0.04 of a rank correlation or an area under a ROC curve, 0.05
    of those that few tokens decide; 0.03 of calibration; 0.15 of the change ratio; a fifth of a point of gold score.
    """
    name = measure.removesuffix(CLOSING)
    if name in ACCURACIES:
        return 0.01 if name in ("accuracy", "accuracy on labels") else 0.02
    if name.startswith("best of") or name.endswith(IN_POINTS):
        return 0.2
    special = {"calibration skill": 0.03, "change ratio": 0.15}
    return special.get(name, 0.05 if name in ("change at quality", "early", "middle", "late") else 0.04)


def power_of_same(sd: float, seeds: int, margin: float) -> float:
    """Probability that two equal variants are found equal: that the whole 95 % interval lies within the margin.

    With the spread taken as known, P(|Z| < margin / se - t), se = sd / sqrt(seeds), Z standard normal, t the quantile
    of Student's distribution that the interval has.

    Args:
        sd: of the paired differences, a seed each.
        seeds: number of pairs, >= 2.
        margin: below which a difference counts as none.
    """
    se = sd / np.sqrt(seeds)
    return float(max(0.0, 2 * norm.cdf(margin / se - t.ppf(0.975, seeds - 1)) - 1))


def design_table(
    cells: Mapping[str, dict[int, dict]],
    pairs: Sequence[tuple[str, str]],
    measures: Sequence[str],
    seeds: int,
) -> pd.DataFrame:
    """Return what a number of seeds can decide, by measure.

    Args:
        cells: of `load_cells`, earlier records.
        pairs: variants that are compared; the pair with the largest spread counts.
        measures: of `MEASURES`, those that the earlier records have.
        seeds: planned.

    Returns:
        by measure: `sd` of a paired difference (from the half width of its interval, so that test prompts count, too),
        `half_width` of the planned interval, `margin` of `planned_margin`, `power` of `power_of_same`, and
        `seeds_for_80`, the least number of seeds with a power of 80 %.
    """
    rows = {}
    for measure in measures:
        spreads = []
        for first, second in pairs:
            found = compare(cells[first], cells[second], measure)
            n = len(cells[first].keys() & cells[second].keys())
            spreads.append((found.difference.high - found.difference.low) / 2 / t.ppf(0.975, n - 1) * np.sqrt(n))
        sd, margin = max(spreads), planned_margin(measure)
        least = next((n for n in range(2, 201) if power_of_same(sd, n, margin) >= 0.8), np.inf)
        half = t.ppf(0.975, seeds - 1) * sd / np.sqrt(seeds)
        rows[measure] = {"sd": sd, "half_width": half, "margin": margin}
        rows[measure] |= {"power": power_of_same(sd, seeds, margin), "seeds_for_80": least}
    return pd.DataFrame(rows).T
