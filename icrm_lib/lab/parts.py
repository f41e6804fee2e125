"""The splits of a source: what of their rows fits, on disk and in reports."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset, load_from_disk

from icrm_lib.preferences import Fitting, Report, read_reports, write_reports


class Parts(dict[str, Dataset]):
    """Data sets by split. One may have lost all its rows: a run that never asks for it does not need it.

    `parts[split]` gives rows or says why there are none; `items()` also gives what is empty.

    Args:
        parts: by split.
        reports: what became of the rows: of `whole_way`.
    """

    def __init__(self, parts: dict[str, Dataset], reports: list[Report]):
        super().__init__(parts)
        self._reports = reports

    def __getitem__(self, split: str) -> Dataset:
        """Return the rows of a split.

        Raises:
            ValueError: it has none; the message holds the report.
        """
        rows = super().__getitem__(split)
        if not len(rows):
            report = next(report for report in self._reports if split in report.used)
            raise ValueError(
                f"the {split} split has no usable preference pair; raise data.max_length, ask for pairs in "
                f"data.{split}_pairs, or add rows:\n{report}"
            )
        return rows


def whole_way(read: list[Report], fitting: dict[str, Fitting]) -> list[Report]:
    """Return the reports on reading, gone on to what is used of each split.

    Args:
        read: one report for all splits, which may tell already what does not fit, or one a split, in their order, after
            others.
        fitting: by split.
    """
    steps = [replace(one.report, used={split: len(one.places)}) for split, one in fitting.items()]
    if len(read) == 1:
        whole = read[0] if read[0].cut else read[0].followed_by(*steps)
        return [replace(whole, used={split: len(one.places) for split, one in fitting.items()})]
    first = len(read) - len(steps)
    return [*read[:first], *(report.followed_by(step) for report, step in zip(read[first:], steps, strict=True))]


def write_fitting(folder: Path, fitting: dict[str, Fitting]) -> None:
    """Write what fits of each split into a folder."""
    for split, one in fitting.items():
        if one.places:  # `datasets` cannot load a folder without rows
            one.tokens.save_to_disk(str(folder / split))
        np.save(folder / f"{split}.npy", np.array(one.places, dtype=np.int64))
    write_reports(folder, [one.report for one in fitting.values()])


def read_fitting(folder: Path, empty: dict[str, Fitting]) -> dict[str, Fitting]:
    """Read what `write_fitting` wrote, memory-mapped; `empty` are the splits as they are without rows."""
    found = {}
    for (split, nothing), report in zip(empty.items(), read_reports(folder), strict=True):
        places = np.load(folder / f"{split}.npy").tolist()
        tokens = load_from_disk(str(folder / split)) if places else nothing.tokens
        found[split] = Fitting(tokens, places, report)
    return found
