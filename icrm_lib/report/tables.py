"""The paper's tables, from committed records alone: mean, interval and seeds, bold computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from icrm_lib.lab.cells import EVERY_METHOD, members
from icrm_lib.measures.statistics import ALPHA, holm
from icrm_lib.report.cells import command_for, load_cells
from icrm_lib.report.evidence import compare, estimate


@dataclass(frozen=True)
class Table:
    """One table to build.

    Attributes:
        name: of the files.
        title: what it compares.
        paper: which item of the paper it is the twin of.
        rows: variant of the records -> what it is called.
        columns: measure of `measured.MEASURES` -> what it is called.
        purpose: which records: "evidence", "best_of_n" or "policy".
        lower_is_better: measures for which the lowest mean is best.
        unranked: measures without a best.
    """

    name: str
    title: str
    paper: str
    rows: Mapping[str, str]
    columns: Mapping[str, str]
    purpose: str = "evidence"
    lower_is_better: tuple[str, ...] = ()
    unranked: tuple[str, ...] = ()


def _labels(*methods: str, suffix: str = "") -> dict[str, str]:
    return {f"{method}{suffix}": EVERY_METHOD[method].label for method in methods}


SECTIONS = {
    "accuracy": "In distribution",
    "longer": "Longer",
    "length reversed": "Length reversed",
    "unseen verbs": "Unseen verbs",
}
BOTH = {"accuracy": "Accuracy", "longer": "Longer", "token agreement": "Token agreement"}
PICKERS = _labels("bt", "grm_sft", "icrm", "icrm_uniform", "implicit")
TABLES = (
    Table(
        "reward_models_400",
        "Reward models, 400 pairs",
        "reward-model table, smaller data",
        _labels(
            *("frozen_mlp", "bt", "bt_margin", "bt_label_smoothing", "bt_positive", "bt_centered", "ensemble_mean"),
            *("ensemble_worst", "grm_sft", "grm_dpo_noref", "grm_dpo", "grm_as_in_icrm", "icrm", "icrm_uniform"),
        ),
        SECTIONS,
    ),
    Table(
        "reward_models_6400",
        "Reward models, 6,400 pairs",
        "reward-model table, larger data",
        _labels("bt", "grm_sft", "icrm", suffix="-6400_pairs"),
        SECTIONS,
    ),
    Table(
        "best_of_n",
        "Best-of-N: gold score of the pick",
        "best-of-N table",
        PICKERS,
        {f"best of {n}": f"N = {n}" for n in (1, 2, 4, 8, 16, 32, 64)},
        purpose="best_of_n",
        unranked=("best of 1",),
    ),
    Table(
        "early_rejection",
        "Early rejection within half of the tokens",
        "none: what token rewards are for",
        PICKERS,
        {
            "early 50%, share": "Share of tokens",
            "early 50%, full": "Gold, all candidates",
            "early 50%, gold": "Gold, rejecting early",
            "early 50%, loss": "Loss",
        },
        purpose="best_of_n",
        lower_is_better=("early 50%, loss",),
        unranked=("early 50%, share",),
    ),
    Table(
        "dpo",
        "DPO on pairs labelled by each reward model",
        "DPO table",
        _labels("bt", "grm_sft", "icrm", "icrm_uniform", "true_scores"),
        {"dpo, greedy": "Gold, greedy", "dpo, sampled": "Gold, samples", "dpo, tokens": "Tokens", "dpo, kl": "KL"},
        purpose="policy",
        unranked=("dpo, tokens", "dpo, kl"),
    ),
    Table(
        "ablations",
        "Weights, forms and centring of the consistency term",
        "ablation tables",
        _labels("icrm", "icrm_uniform", "icrm_shuffled", *members("weightings"), *members("forms"), "grm_as_in_icrm"),
        BOTH,
    ),
    Table(
        "overhead",
        "Training time of one reward model",
        "overhead paragraph",
        _labels("bt", "grm_sft", "icrm", "icrm_uniform") | {"bt-double": "Bradley-Terry, 2.1 times the size"},
        {"train seconds": "Seconds, one core"},
        lower_is_better=("train seconds",),
    ),
)


def build(table: Table, profile: str, folder: Path | None = None) -> pd.DataFrame:
    """Compute a table from the records of a profile.

    Args:
        table: of `TABLES`, or your own.
        profile: whose records are read.
        folder: where they lie, see `cells.load_cells`.

    Returns:
        one row a method and measure: `method`, `measure`, `mean`, `low`, `high` (95 %), `seeds` and `best` (see
        `best_variants`).

    Raises:
        FileNotFoundError: records are missing; the message names the command that makes them.
        ValueError: records of another profile, or made of other data or another base model than the rest.
    """
    cells = load_cells(profile, folder, purpose=table.purpose)
    command = command_for(profile, table.purpose)
    if missing := [variant for variant in table.rows if variant not in cells]:
        raise FileNotFoundError(f"no records of {', '.join(missing)} for table {table.name}; make them: {command}")
    _refuse_mixtures(table, profile, {variant: cells[variant] for variant in table.rows}, command)
    rows = []
    for measure, column in table.columns.items():
        best = (
            []
            if measure in table.unranked
            else best_variants(
                {variant: cells[variant] for variant in table.rows}, measure, lowest=measure in table.lower_is_better
            )
        )
        for variant, name in table.rows.items():
            value, low, high = estimate(cells[variant], measure)
            rows.append(
                {"method": name, "measure": column, "mean": value, "low": low, "high": high}
                | {"seeds": len(cells[variant]), "best": variant in best}
            )
    return pd.DataFrame(rows)


def _refuse_mixtures(table: Table, profile: str, cells: Mapping[str, dict], command: str) -> None:
    def data_of(config: dict) -> dict:
        data = {name: config["profile"][name] for name in ("language", "data")}
        return {**data, "data": {k: v for k, v in data["data"].items() if k != "train_pairs"}}

    first = next(iter(next(iter(cells.values())).values()))
    bases: dict[str, str] = {}  # kind of base model -> the one that was used
    for variant, runs in cells.items():
        for seed, run in runs.items():
            found = run["config"]["profile"]["name"]
            if found != profile:
                raise ValueError(
                    f"{variant}-seed_{seed} is a record of profile {found!r}, not {profile!r}; "
                    f"remove it, then: {command}"
                )
            if data_of(run["config"]) != data_of(first["config"]):
                raise ValueError(
                    f"{variant}-seed_{seed} was made with another version of the data than the rest of table "
                    f"{table.name}; remove it, then: {command}"
                )
            if run["base_model"] != bases.setdefault(run["config"]["cell"]["base"], run["base_model"]):
                raise ValueError(
                    f"{variant}-seed_{seed} was made from another base model than the rest of table {table.name}; "
                    f"remove it, then: {command}"
                )


def best_variants(cells: Mapping[str, dict], measure: str, *, lowest: bool = False) -> list[str]:
    """Return the variant with the best mean and all that are not significantly worse.

    Each is compared with the best one on the seeds that both have; p-values are Holm-corrected over the column. A
    variant that cannot be compared (fewer than two common seeds) counts as not worse only where it is the best.
    """
    means = {variant: estimate(runs, measure).value for variant, runs in cells.items()}
    best = (min if lowest else max)(means, key=means.get)
    others = [v for v in cells if v != best and len(cells[v].keys() & cells[best].keys()) > 1]
    p = holm([compare(cells[best], cells[other], measure).p for other in others]) if others else []
    return [best, *(other for other, value in zip(others, p, strict=True) if value >= ALPHA)]
