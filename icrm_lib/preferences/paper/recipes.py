r"""The data of the paper's settings as recipes: from the published files to training, validation and test pairs.

- "unified-feedback": every `stride`-th row of Unified-Feedback, tested on its split `val`.
- "skywork+unified-feedback": Skywork's pairs without every tenth, and Unified-Feedback; tested on the tenth.
- "prm800k": solutions of PRM800K's problems, sampled here and labelled by their boxed answers.

Rows go through in small batches into Arrow files, so 800,000 pairs take no more memory than 8,000.
"""

from pathlib import Path
from typing import Any

from datasets import Dataset

from icrm_lib import records
from icrm_lib.preferences.collection import open_preferences
from icrm_lib.preferences.paper.prm800k import Draw, make_prm800k
from icrm_lib.preferences.paper.sources import RECIPES, published_files
from icrm_lib.preferences.paper.splits import SPLITS
from icrm_lib.preferences.paper.unified_feedback import make_skywork, make_unified
from icrm_lib.preferences.report import REPORTS, Report, read_reports, write_reports
from icrm_lib.profiles import DataSettings
from icrm_lib.runtime import nearest


def load_recipe(
    name: str, data: DataSettings, folder: str | Path, *, draw: Draw | None = None, seed: int = 0
) -> tuple[dict[str, Dataset], list[Report]]:
    """Make a recipe's pairs in a folder, or open what was made there before; no prompt is in two splits.

    Training rows are those of the paper, in their order. What would occur twice is left out of the test, then of the
    validation rows, and counted in a note.

    Args:
        name: one of `RECIPES`.
        data: `files` is a folder with the downloaded files (see `Source.how_to_get`), empty for the hub; `stride`
            takes every n-th row of Unified-Feedback.
        folder: for `<split>.arrow` and `reports.json`, which is written last; what is there is not made again.
        draw: for "prm800k", returns an even number of sampled solutions a problem; see `language_model.samples`.
        seed: for "prm800k", assigns problems to splits.

    Returns:
        split -> memory-mapped data set in the form of `preferences.load_preferences`, for "prm800k" with
        `preferences.LABEL_KEYS`; and the reports, one a split, for "prm800k" one of the problems before them.

    Raises:
        FileNotFoundError: `data.files` is no folder or lacks a file; the message says what to download.
        ConnectionError: the hub is out of reach; likewise.
        ValueError: unknown recipe, `stride` below 1, no `draw` for "prm800k", or a split without a single row.
    """
    folder = Path(folder)
    if name not in RECIPES:
        raise ValueError(f"unknown recipe {name!r}; {nearest(name, list(RECIPES))}")
    if data.stride < 1:
        raise ValueError(f"stride={data.stride} must be 1 (every row) or more; correct data: stride")
    if not (folder / REPORTS).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        if name == "prm800k":
            reports = make_prm800k(data, folder, draw, seed)
        else:
            make = make_unified if name == "unified-feedback" else make_skywork
            reports = make(data, folder)
        write_reports(folder, reports)
    reports = read_reports(folder)
    opened = zip(SPLITS, reports[-len(SPLITS) :], strict=True)
    return {split: open_preferences(folder / f"{split}.arrow", report.source) for split, report in opened}, reports


def recipe_key(name: str, data: DataSettings) -> dict[str, Any]:
    """Return what a recipe's rows depend on beside code, sampler and seed: the hub's names, or the files' checksums.

    Raises:
        FileNotFoundError: as `load_recipe`.
    """
    key: dict[str, Any] = {"recipe": name, "stride": data.stride}
    for source in RECIPES[name]:
        key[source.name] = source.config or source.url
        if data.files:
            alone = len(RECIPES[name]) == 1
            files = [file for split in source.splits for file in published_files(source, split, data.files, alone)]
            key[source.name] = [[path.name, records.file_checksum(path)] for path in files]
    return key
