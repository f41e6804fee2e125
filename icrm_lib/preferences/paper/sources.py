"""Where the paper's data sets are published, their rows from files or the network, and the splits made of them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import datasets

from icrm_lib import runtime
from icrm_lib.preferences.loading import collect_preferences
from icrm_lib.preferences.prompts import PromptIds
from icrm_lib.preferences.report import Report
from icrm_lib.profiles import DataSettings
from icrm_lib.rows import ENDINGS, ending, file_rows, json_lines

SPLITS = ("train", "validation", "test")
SECONDS = 60  # without a byte from an address
Rows = Iterator[tuple[int, Any]]  # line from 1, row


@dataclass(frozen=True)
class Source:
    """Where a data set is published.

    Attributes:
        name: hub id, or for `url` the project's.
        splits: published splits that a recipe reads; files are named after them.
        config: the hub data set's configuration; empty for its only one.
        url: address of a file of JSON lines outside the hub; empty for a hub data set.
    """

    name: str
    splits: tuple[str, ...]
    config: str = ""
    url: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder that the command of `how_to_get` makes."""
        return self.name.rpartition("/")[2]

    def how_to_get(self) -> str:
        """Return a sentence that says how to bring the data to a machine without network."""
        only = f" --include '{self.config}/*'" if self.config else ""
        download = f"hf download {self.name} --repo-type dataset{only} --local-dir {self.folder}"
        if self.url:
            download = f"curl -L --create-dirs -O --output-dir {self.folder} {self.url}"
        return (
            f"where there is a network, run `{download}`, copy the folder {self.folder!r} here and name the "
            "folder it lies in under data: files"
        )


UNIFIED_FEEDBACK = Source("llm-blender/Unified-Feedback", ("train", "val"), "all")
SKYWORK = Source("Skywork/Skywork-Reward-Preference-80K-v0.2", ("train",))
PRM800K = Source(
    "openai/prm800k",
    ("phase2_train",),
    url="https://github.com/openai/prm800k/raw/main/prm800k/data/phase2_train.jsonl",
)
RECIPES = {
    "unified-feedback": (UNIFIED_FEEDBACK,),
    "skywork+unified-feedback": (SKYWORK, UNIFIED_FEEDBACK),
    "prm800k": (PRM800K,),
}


def published_rows(source: Source, split: str, files: str, alone: bool) -> Rows:
    """Yield the rows of a published split in their order, from the files or from the network; nothing is kept.

    Args:
        source, split: what to read.
        files: folder with the downloaded files; empty for the network.
        alone: the recipe reads no other source.
    """
    if files:
        last = 0
        for path in published_files(source, split, files, alone):
            before = last
            for line, row in file_rows(path):
                last = before + line
                yield last, row
        return
    try:
        if source.url:
            with urlopen(source.url, timeout=SECONDS) as lines:
                yield from json_lines(lines)
        else:
            streamed = datasets.load_dataset(source.name, source.config or None, split=split, streaming=True)
            yield from enumerate(streamed, 1)
    except Exception as error:  # the hub's clients raise errors of four libraries
        raise ConnectionError(f"cannot read {source.name}, split {split!r}: {error}; {source.how_to_get()}") from error


def published_files(source: Source, split: str, folder: str, alone: bool) -> list[Path]:
    """Return the files of a published split, in order: `train-00000-of-00002.parquet`, `val.jsonl`, ...

    They lie in a folder named after the data set; where a recipe reads one only, also in `folder` itself.
    """
    top = runtime.resolve_path(folder)
    root = top / source.folder if not alone or (top / source.folder).is_dir() else top
    of_split = re.compile(rf"(.+[-_.])?{split}[-_.].*")
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and of_split.fullmatch(path.name)]
    found = [path for path in found if ending(path) in ENDINGS]
    # A whole download has one folder a configuration.
    found = [path for path in found if source.config in path.relative_to(root).parts[:-1]] or found
    if not found:
        raise FileNotFoundError(
            f"no file of split {split!r} of {source.name} in {runtime.display_path(root)} (looked for "
            f"{split}-*.parquet, {split}.jsonl and the like); {source.how_to_get()}"
        )
    return found


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
