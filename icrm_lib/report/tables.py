"""The paper's tables, from committed records alone (mean, interval, seeds, bold computed), and how they are written."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from icrm_lib import records, runtime
from icrm_lib.lab.cells import EVERY_METHOD, members
from icrm_lib.measures.statistics import ALPHA, holm
from icrm_lib.report.cells import command_for, compare, estimate, load_cells

CAPTION = (
    "Mean [95 % interval over seeds and prompts]. Bold, computed: the best mean of a column and every one that is not "
    "significantly worse (paired, Holm over the column, 0.05). The paper's own values are left out: no source for them "
    "was at hand."
)


@dataclass(frozen=True)
class Table:
    """One table to build.

    Attributes:
        name: of the files.
        title: what it compares.
        paper: which item of the paper it is the twin of.
        rows: variant of the records -> what it is called.
        columns: measure of `cells.MEASURES` -> what it is called.
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
FORMS = ("icrm_plain_log", "icrm_l1", "icrm_l2", "martingale", "icrm_centered_on_positions", "icrm_not_centered")
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
        _labels("icrm", "icrm_uniform", "icrm_shuffled", *members("weightings"), *FORMS, "grm_as_in_icrm"),
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
    cells = {variant: cells[variant] for variant in table.rows}
    _refuse_mixtures(table.name, profile, cells, command)
    rows = []
    for measure, column in table.columns.items():
        is_ranked, lowest = measure not in table.unranked, measure in table.lower_is_better
        best = best_variants(cells, measure, lowest=lowest) if is_ranked else []
        for variant, name in table.rows.items():
            value, low, high = estimate(cells[variant], measure)
            row = {"method": name, "measure": column, "mean": value, "low": low, "high": high}
            rows.append(row | {"seeds": len(cells[variant]), "best": variant in best})
    return pd.DataFrame(rows)


def _refuse_mixtures(table: str, profile: str, cells: Mapping[str, dict], command: str) -> None:
    """Raise ValueError for a record of another profile, or of other data or another base model than those before it."""
    first: dict[str, object] = {}  # what must not change -> what it is in the first record
    for name, run in ((f"{variant}-seed_{seed}", run) for variant, runs in cells.items() for seed, run in runs.items()):
        settings, fault = run["config"]["profile"], None
        data = {key: value for key, value in settings["data"].items() if key != "train_pairs"}
        if settings["name"] != profile:
            fault = f"is a record of profile {settings['name']!r}, not {profile!r}"
        elif first.setdefault("data", (settings["language"], data)) != (settings["language"], data):
            fault = f"was made with another version of the data than the rest of table {table}"
        elif first.setdefault(f"base {run['config']['cell']['base']}", run["base_model"]) != run["base_model"]:
            fault = f"was made from another base model than the rest of table {table}"
        if fault:
            raise ValueError(f"{name} {fault}; remove it, then: {command}")


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


def wide(frame: pd.DataFrame, bold: str = "**{}**") -> pd.DataFrame:
    """Lay a table out as papers do: a row a method, a column a measure, "mean [low, high]", the best in bold.

    Args:
        frame: of `build`.
        bold: how to print what is best; "{}" for plain text.
    """
    highest = frame["mean"].abs().groupby(frame["measure"]).transform("max")
    frame = frame.assign(digits=np.select([highest < 1.05, highest < 20], [3, 2], 1))  # as many as there is room for

    def cell(row: pd.Series) -> str:
        d = row["digits"]
        text = f"{row['mean']:.{d}f}"
        text = bold.format(text) if row["best"] else text
        return text + (f" [{row['low']:.{d}f}, {row['high']:.{d}f}]" if row["seeds"] > 1 else "")

    shown = frame.assign(text=frame.apply(cell, axis=1)).pivot(index="method", columns="measure", values="text")
    shown = shown.loc[frame["method"].unique(), frame["measure"].unique()]
    shown.insert(0, "Seeds", frame.drop_duplicates("method").set_index("method")["seeds"])
    return shown.rename_axis(index="Method", columns=None)


def to_markdown(table: Table, frame: pd.DataFrame) -> str:
    """Return a table as Markdown with its title and what the brackets and the bold type mean."""
    # Names are text; only what `wide` makes of numbers is markup.
    named = frame.assign(method=frame["method"].map(_markdown), measure=frame["measure"].map(_markdown))
    shown = wide(named).reset_index()
    lines = [f"## {_markdown(table.title)}", "", f"Twin of: {_markdown(table.paper)}.", ""]
    lines += ["| " + " | ".join(map(str, shown.columns)) + " |", "|" + "---|" * len(shown.columns)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in shown.itertuples(index=False)]
    return "\n".join([*lines, "", CAPTION, ""])


def to_latex(table: Table, frame: pd.DataFrame) -> str:
    """Return a table as LaTeX (needs booktabs)."""
    shown = wide(frame.assign(method=frame["method"].map(_latex)), bold=r"\textbf{{{}}}")
    shown.columns = [_latex(str(column)) for column in shown.columns]
    caption = f"{_latex(table.title)}. {_latex(CAPTION)}"
    return shown.to_latex(escape=False, caption=caption, label=f"tab:{table.name}")


def _markdown(text: str) -> str:
    # HTML in Markdown is HTML in a notebook's page.
    return re.sub(r"([\\`*_\[\]|#$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _latex(text: str) -> str:
    named = {"\\": "textbackslash", "~": "textasciitilde", "^": "textasciicircum", "<": "textless", ">": "textgreater"}
    return "".join(f"\\{named[c]}{{}}" if c in named else "\\" + c if c in "&%$#_{}" else c for c in text)


def write(table: Table, frame: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Write a table as Markdown, CSV (all numbers) and LaTeX; returns the three paths."""
    folder, name = Path(folder), runtime.plain_name(table.name)
    paths = [folder / f"{name}{suffix}" for suffix in (".md", ".csv", ".tex")]
    texts = (to_markdown(table, frame), frame.round(6).to_csv(index=False), to_latex(table, frame))
    return [records.write_bytes(path, text.encode()) for path, text in zip(paths, texts, strict=True)]


def tables_folder(profile: str) -> Path:
    """Where the tables of a profile lie."""
    return runtime.project_root() / "figures" / runtime.plain_name(profile)
