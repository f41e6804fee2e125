"""How a table is laid out and written: Markdown, CSV, LaTeX."""

import html
import re
from pathlib import Path

import pandas as pd

from icrm_lib import records, runtime
from icrm_lib.report.tables import Table

CAPTION = (
    "Mean [95 % interval over seeds and prompts]. Bold, computed: the best mean of a column and every one that is not "
    "significantly worse (paired, Holm over the column, 0.05). The paper's own values are left out: no source for them "
    "was at hand."
)


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
