"""The splits of one recipe as they are written; no prompt is in two of them."""

from pathlib import Path

from icrm_lib.preferences.collection import collect_preferences
from icrm_lib.preferences.paper.sources import RECIPES, Rows, Source, published_rows
from icrm_lib.preferences.prompts import PromptIds
from icrm_lib.preferences.report import Report
from icrm_lib.profiles import DataSettings

SPLITS = ("train", "validation", "test")


class Splits:
    """The splits of one recipe as they are written, and the prompts that they hold."""

    def __init__(self, name: str, data: DataSettings, folder: Path, carry: tuple[str, ...] = ()):
        self.name, self.data, self.folder, self.carry = name, data, folder, carry
        self.prompts: dict[str, PromptIds] = {}
        self.reports: dict[str, Report] = {}

    def read(self, source: Source, split: str) -> Rows:
        """Yield (line, row) of a published split in its order."""
        return published_rows(source, split, self.data.files, alone=len(RECIPES[self.name]) == 1)

    def write(self, split: str, rows: Rows, notes: list[str]) -> None:
        """Write the rows whose prompts are in no split before; `notes` may be filled while they pass."""
        dataset, report = collect_preferences(
            f"{self.name} ({split})", rows, file=self.folder / f"{split}.arrow", carry=self.carry, without=self.prompts
        )
        report.notes[:0] = notes
        self.prompts[split] = PromptIds(dataset)
        self.reports[split] = report

    def in_order(self) -> list[Report]:
        """Return the reports in the order of `SPLITS`."""
        return [self.reports[split] for split in SPLITS]
