"""What the cells of the evidence say: means, paired differences, and verdicts on the reviewers' objections."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from icrm_lib.measures.statistics import ALPHA, holm
from icrm_lib.report.cells import MARGINS, compare, estimate
from icrm_lib.runtime import nearest


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
    found = estimate(runs, measure)
    return str(found) if len(runs) > 1 else f"{found.value:.3f}"
