"""The paper's tables, from committed records alone: ours with interval and seeds beside the paper's, bold computed."""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from icrm_lib import records, runtime
from icrm_lib.report.evidence import ALPHA, command_for, compare, estimate, holm, load_cells

NOT_TRANSCRIBED = "not transcribed"  # no source for the paper's own value is at hand


@dataclass(frozen=True)
class Table:
    """One table to build.

    Attributes:
        name: of the files.
        title: what it compares.
        paper: which item of the paper it is the twin of.
        rows: variant of the records -> what it is called.
        columns: measure of `evidence.MEASURES` -> what it is called.
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


METHODS = {
    "frozen_mlp": "Frozen backbone, MLP",
    "bt": "Bradley-Terry",
    "bt_margin": "+ margin",
    "bt_label_smoothing": "+ label smoothing",
    "bt_positive": "+ positive regularisation",
    "bt_centered": "+ reward centring",
    "ensemble_mean": "Ensemble of 3, mean",
    "ensemble_worst": "Ensemble of 3, worst",
    "grm_sft": "GRM (SFT)",
    "grm_dpo_noref": "GRM (DPO, no reference)",
    "grm_dpo": "GRM (DPO)",
    "grm_as_in_icrm": "ICRM without regulariser",
    "icrm": "ICRM",
    "icrm_uniform": "ICRM, p = 1",
}
SECTIONS = {
    "accuracy": "In distribution",
    "longer": "Longer",
    "length reversed": "Length reversed",
    "unseen verbs": "Unseen verbs",
}
BOTH = {"accuracy": "Accuracy", "longer": "Longer", "token agreement": "Token agreement"}
POLICY_ROWS = {
    "bt": "Bradley-Terry",
    "grm_sft": "GRM (SFT)",
    "icrm": "ICRM",
    "icrm_uniform": "ICRM, p = 1",
    "true_scores": "gold labels (ceiling)",
}
TABLES = (
    Table("reward_models_400", "Reward models, 400 pairs", "reward-model table, smaller data", METHODS, SECTIONS),
    Table(
        "reward_models_6400",
        "Reward models, 6,400 pairs",
        "reward-model table, larger data",
        {f"{m}-6400_pairs": METHODS[m] for m in ("bt", "grm_sft", "icrm")},
        SECTIONS,
    ),
    Table(
        "best_of_n",
        "Best-of-N: gold score of the pick",
        "best-of-N table",
        {m: n for m, n in POLICY_ROWS.items() if m != "true_scores"} | {"implicit": "DPO, implicit rewards"},
        {f"best of {n}": f"N = {n}" for n in (1, 2, 4, 8, 16, 32, 64)},
        purpose="best_of_n",
        unranked=("best of 1",),
    ),
    Table(
        "early_rejection",
        "Early rejection within half of the tokens",
        "none: what token rewards are for",
        {m: n for m, n in POLICY_ROWS.items() if m != "true_scores"} | {"implicit": "DPO, implicit rewards"},
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
        POLICY_ROWS,
        {"dpo, greedy": "Gold, greedy", "dpo, sampled": "Gold, samples", "dpo, tokens": "Tokens", "dpo, kl": "KL"},
        purpose="policy",
        unranked=("dpo, tokens", "dpo, kl"),
    ),
    Table(
        "ablations",
        "Weights, forms and centring of the consistency term",
        "ablation tables",
        {
            "icrm": "ICRM: probability, mutual BCE, centred on the response",
            "icrm_uniform": "weights 1",
            "icrm_shuffled": "weights shuffled",
            "icrm_random_pairs": "random pairs",
            "icrm_entropy": "weights by entropy",
            "icrm_top1_margin": "weights by top-1 margin",
            "icrm_inverted": "weights inverted",
            "icrm_plain_log": "no mutual weights",
            "icrm_l1": "L1",
            "icrm_l2": "L2",
            "martingale": "martingale",
            "icrm_not_centered": "not centred",
            "icrm_centered_on_positions": "centred on all positions",
            "grm_as_in_icrm": "no consistency term",
        },
        BOTH,
    ),
    Table(
        "overhead",
        "Training time of one reward model",
        "overhead paragraph",
        {m: METHODS[m] for m in ("bt", "grm_sft", "icrm", "icrm_uniform")}
        | {"bt-double": "Bradley-Terry, 2.1 times the size"},
        {"train seconds": "Seconds, one core"},
        lower_is_better=("train seconds",),
    ),
)


def build(table: Table, profile: str, folder: Path | None = None) -> pd.DataFrame:
    """Compute a table from the records of a profile.

    Args:
        table: of `TABLES`, or your own.
        profile: whose records are read.
        folder: where they lie, see `evidence.load_cells`.

    Returns:
        one row a method and measure: `method`, `measure`, `mean`, `low`, `high` (95 %), `seeds`, `best` (see
        `best_variants`), `paper` and `difference` (nothing is known of the paper's values: `NOT_TRANSCRIBED` and nan).

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
                | {"paper": NOT_TRANSCRIBED, "difference": float("nan")}
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


# Printing ------------------------------------------------------------------------------------------------------------


def _digits(frame: pd.DataFrame) -> dict[str, int]:
    """Decimals of each column: as many as its largest number leaves room for."""
    return {m: 3 if part["mean"].abs().max() < 1.05 else 2 if part["mean"].abs().max() < 20 else 1
            for m, part in frame.groupby("measure", sort=False)}  # fmt: skip


def wide(frame: pd.DataFrame, bold: str = "**{}**") -> pd.DataFrame:
    """Lay a table out as papers do: a row a method, a column a measure, "mean [low, high]", the best in bold.

    Args:
        frame: of `build`.
        bold: how to print what is best; "{}" for plain text.
    """
    digits = _digits(frame)

    def cell(row: pd.Series) -> str:
        d = digits[row["measure"]]
        text = f"{row['mean']:.{d}f}"
        text = bold.format(text) if row["best"] else text
        return text + (f" [{row['low']:.{d}f}, {row['high']:.{d}f}]" if row["seeds"] > 1 else "")

    shown = frame.assign(text=frame.apply(cell, axis=1)).pivot(index="method", columns="measure", values="text")
    shown = shown.loc[frame["method"].unique(), frame["measure"].unique()]
    shown.insert(0, "Seeds", frame.drop_duplicates("method").set_index("method")["seeds"])
    shown["Paper"] = NOT_TRANSCRIBED
    shown["Difference"] = "–"
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


CAPTION = (
    "Mean [95 % interval over seeds and prompts]. Bold, computed: the best mean of a column and every one that is not "
    "significantly worse (paired, Holm over the column, 0.05)."
)


def to_latex(table: Table, frame: pd.DataFrame) -> str:
    """Return a table as LaTeX (needs booktabs)."""
    shown = wide(frame.assign(method=frame["method"].map(_latex)), bold=r"\textbf{{{}}}")
    shown.columns = [_latex(str(column)) for column in shown.columns]
    shown = shown.replace("–", "--")
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
