"""Tables come from records alone: bold is computed, gaps name their command, other data are refused."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest

from icrm_lib import runtime
from icrm_lib.report import load_cells
from icrm_lib.report.cells import MEASURES
from icrm_lib.report.tables import TABLES, Table, best_variants, build, to_latex, to_markdown, wide, write

TWO = Table(
    "two",
    "Two methods",
    "nothing",
    {"bt": "Bradley-Terry", "icrm": "ICRM & co_1", "grm_sft": "GRM"},
    {"early": "Early", "train seconds": "Seconds"},
    lower_is_better=("train seconds",),
)


def record(early, seconds, profile="lab", language=0, base="x"):
    settings = {"name": profile, "language": {"seed": language}, "data": {"train_pairs": 400, "test_pairs": 5}}
    metrics = {"tokens": {"localisation": {"early": early}}, "seconds": {"train": seconds}}
    config = {"settings": {}, "profile": settings, "cell": {"method": "?", "base": "base"}}
    return {"config": config, "base_model": base, "metrics": metrics}


@pytest.fixture
def folder(tmp_path):
    """ICRM and GRM are much better early than Bradley-Terry and hardly differ; Bradley-Terry is the fastest."""
    noise = [0.001, -0.002, 0.0015, -0.0005, 0.0]
    values = {"bt": (0.6, 10), "icrm": (0.9, 30), "grm_sft": (0.899, 20)}
    for variant, (early, seconds) in values.items():
        for seed, e in enumerate(noise):
            wobble = e * (3 if variant == "grm_sft" else 1) * (-1) ** seed
            path = tmp_path / f"{variant}-seed_{seed}.json"
            path.write_text(json.dumps(record(early + wobble, seconds + 10 * e)))
    return tmp_path


def test_bold_is_the_best_and_what_is_not_significantly_worse(folder):
    frame = build(TWO, "lab", folder)
    best = {measure: set(part.loc[part["best"], "method"]) for measure, part in frame.groupby("measure")}
    assert best == {"Early": {"ICRM & co_1", "GRM"}, "Seconds": {"Bradley-Terry"}}
    assert best_variants(load_cells("lab", folder), "train seconds") == ["icrm"]
    assert (
        set(frame["seeds"]) == {5} and (frame["low"] <= frame["mean"]).all() and (frame["mean"] <= frame["high"]).all()
    )


def test_tables_are_written_in_three_forms(folder, tmp_path):
    frame = build(TWO, "lab", folder)
    shown = wide(frame)
    assert shown.loc["Bradley-Terry", "Early"].startswith("0.601 [")
    assert shown.loc["GRM", "Early"].startswith("**0.902** [")
    markdown, latex = to_markdown(TWO, frame), to_latex(TWO, frame)
    assert markdown.count("\n| ") == 4 and "| Bradley-Terry | 5 | 0.601 [" in markdown
    assert r"\textbf{10.0}" in latex and r"ICRM \& co\_1" in latex and r"95 \%" in latex and "**" not in latex
    paths = write(TWO, frame, tmp_path / "out")
    assert [p.name for p in paths] == ["two.md", "two.csv", "two.tex"]
    pd.testing.assert_frame_equal(pd.read_csv(paths[1]), frame.round(6))


def test_missing_records_name_their_command(folder):
    with pytest.raises(
        FileNotFoundError, match=r"no records of martingale for table two; make them: make evidence PROFILE=lab$"
    ):
        build(replace(TWO, rows={**TWO.rows, "martingale": "Martingale"}), "lab", folder)
    with pytest.raises(FileNotFoundError, match="make evidence PROFILE=lab ONLY=policy"):
        build(replace(TWO, purpose="policy"), "lab", folder / "nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "smoke"}, "bt-seed_[0-4] is a record of profile 'smoke'"),
        ({"language": 3}, "another version of the data"),
        ({"base": "other"}, "another base model"),
    ],
)
def test_records_of_another_profile_or_other_data_are_refused(folder, changes, message):
    for seed in range(5):
        (folder / f"bt-seed_{seed}.json").write_text(json.dumps(record(0.5, 1.0, **changes)))
    with pytest.raises(ValueError, match=message):
        build(TWO, "lab", folder)


def test_the_tables_ask_for_measures_that_exist():
    assert len({table.name for table in TABLES}) == len(TABLES)
    for table in TABLES:
        assert set(table.columns) <= set(MEASURES)
        assert {*table.lower_is_better, *table.unranked} <= set(table.columns)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_committed_tables_are_those_of_the_committed_records(table):
    path = runtime.project_root() / "figures" / "lab" / f"{table.name}.csv"
    frame = build(table, "lab")
    pd.testing.assert_frame_equal(pd.read_csv(path), frame.round(6), rtol=1e-4, atol=1e-4)
    bold = re.findall(r"\*\*", path.with_suffix(".md").read_text(encoding="utf-8"))
    assert len(bold) == 2 * frame["best"].sum()
    assert path.with_suffix(".md").read_text(encoding="utf-8") == to_markdown(table, frame)
