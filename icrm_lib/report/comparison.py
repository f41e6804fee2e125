"""The same cells trained twice: how far the new records are from the old ones, measure by measure."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from icrm_lib import records
from icrm_lib.report.cells import MEASURES

COLUMNS = ["measure", "cells", "old mean", "new mean", "largest difference"]


def compare_folders(old: str | Path, new: str | Path) -> pd.DataFrame:
    """Compare the records that two folders both have.

    Args:
        old, new: folders of cells of one purpose, e.g. `results/lab/evidence` and one where they were trained again.

    Returns:
        one row a measure of `report.cells.MEASURES` that some cell has in both: on how many `cells`, the `old mean` and
        the `new mean` over them, in the measure's own unit, and the `largest difference` of one cell, new less old.

    Raises:
        ValueError: the folders have no cell in common.
    """
    # The choices of tuning lie beside the cells.
    names = sorted(set.intersection(*({path.name for path in Path(f).glob("*-seed_*.json")} for f in (old, new))))
    if not names:
        raise ValueError(f"{Path(old).name} and {Path(new).name} have no cell in common; train some of the same cells")
    pairs = [[records.read_json(Path(folder) / name)["metrics"] for folder in (old, new)] for name in names]
    rows = []
    for measure, fields in MEASURES.items():
        values = np.array([[_value(metrics, fields) for metrics in pair] for pair in pairs])
        values = values[np.isfinite(values).all(1)]
        if len(values):
            difference = values[:, 1] - values[:, 0]
            means = values.mean(0)
            rows.append([measure, len(values), *means, difference[np.abs(difference).argmax()]])
    return pd.DataFrame(rows, columns=COLUMNS)


def _value(metrics: dict[str, Any], fields: tuple[str, ...]) -> float:
    """A measure of one cell, over all prompts; nan where the cell has none."""
    parts = []
    for field in fields:
        found: Any = metrics
        for key in field.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        parts.append(np.array(np.nan if found is None else found, dtype=float))
    if len(parts) == 1:
        return float(parts[0].mean())
    return float(parts[0].sum() / parts[1].sum()) if parts[1].sum() else np.nan
