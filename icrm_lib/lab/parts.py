"""The splits of a source."""

from datasets import Dataset

from icrm_lib.preferences import Report


class Parts(dict[str, Dataset]):
    """Data sets by split. One may have lost all its rows: a run that never asks for it does not need it.

    `parts[split]` gives rows or says why there are none; `items()` also gives what is empty.

    Args:
        parts: by split.
        reports: what became of the rows of each.
    """

    def __init__(self, parts: dict[str, Dataset], reports: dict[str, Report]):
        super().__init__(parts)
        self._reports = reports

    def __getitem__(self, split: str) -> Dataset:
        """Return the rows of a split.

        Raises:
            ValueError: it has none; the message holds the report.
        """
        rows = super().__getitem__(split)
        if not len(rows):
            raise ValueError(
                f"the {split} split has no usable preference pair; raise data.max_length, ask for pairs in "
                f"data.{split}_pairs, or add rows:\n{self._reports[split]}"
            )
        return rows
