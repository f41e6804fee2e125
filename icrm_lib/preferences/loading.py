"""Preference pairs from files, the hub or a data set: bad rows refused with line, reason and remedy.

A pair is a prompt (a conversation that ends with the user's turn) with two replies to it, the chosen and the
rejected one.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from icrm_lib.preferences.collection import collect_preferences, lines_of, name_of
from icrm_lib.preferences.report import Report
from icrm_lib.rows import ENDINGS, ending, file_rows


def load_preferences(
    source: str | Path,
    *,
    split: str = "train",
    strict: bool = False,
    revision: str | None = None,
) -> tuple[Dataset, Report]:
    """Read preference pairs; every good row is kept, every bad one reported.

    A row has the keys `chosen` and `rejected`, each one

    - a text, the reply; `prompt` is then a text or a list of messages; or
    - a list of messages ({"role", "content"}): the reply turns, or the whole conversation. Both lists must be
      equal up to the final reply. `prompt` may be left out with whole conversations.

    Optional keys: `source` (text), and a margin: `margin`, or one of the pairs in `RATING_KEYS` (margin is
    then their difference). Other keys are ignored; that an `id` occurs twice is noted.

    Texts are kept as they are. Refused is what would become something else on the way or teaches nothing, among it
    texts without a visible character, replies that look the same, tool calls (they are no text), and ShareGPT's
    `conversations`, `from` and `value`, of which nobody has fixed how two replies are written (the remedy says what to
    rename).

    Args:
        source: a .jsonl, .json (array or lines; both may end in .gz) or .parquet file, or a hub id
            "owner/name".
        split: split of a hub data set, slices like "train[:1000]" included. A file has only "train".
        strict: raise at the first bad row instead of leaving it out.
        revision: branch, tag or commit of a hub data set.

    Returns:
        A data set with the columns `prompt` (list of messages), `chosen` and `rejected` (str), `line` (int,
        from 1), `prompt_id` (16 hex digits, equal for prompts that differ only in white space or Unicode
        composition), `source` if any row has one, `margin` (float64) if all rows have one; and the report.

    Raises:
        FileNotFoundError, IsADirectoryError: `source` is no file.
        ValueError: unknown file type, a file that is damaged or in another encoding as a whole (see
            `rows.file_rows`), not a single usable row (the message holds the report), or with `strict` a bad row.
        ConnectionError: the hub data set cannot be loaded.
    """
    name, rows = _open(source, split, revision)
    return collect_preferences(name, rows, strict=strict)


def preference_rows(dataset: Dataset, *, strict: bool = False) -> tuple[Dataset, Report]:
    """Bring preference pairs that are already a data set into the form that `load_preferences` returns.

    Args:
        dataset: rows as `load_preferences` describes them; a column `line` of integers is kept.
        strict: raise at the first bad row instead of leaving it out.

    Returns:
        Data set and report, as `load_preferences`.

    Raises:
        ValueError: not a single usable row, or with `strict` a bad row.
    """
    dataset = dataset.with_format(None)  # numbers and lists, not tensors
    rows = zip(lines_of(dataset), dataset, strict=True)
    return collect_preferences(name_of(dataset), rows, strict=strict)


def _open(source: str | Path, split: str, revision: str | None) -> tuple[str, Iterable[tuple[int, Any]]]:
    """Return the source's name for reports, and its rows with their line numbers."""
    # os.path's answers are False where pathlib's raise: the home of somebody unknown, a name that is too long.
    path = Path(os.path.expanduser(source))
    found = os.path.exists(path)
    looks_like_hub = isinstance(source, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)
    if looks_like_hub and not found and ending(path) not in ENDINGS:
        return source, enumerate(_read_hub(source, split, revision), 1)
    name = path.name if path.is_absolute() else str(source)
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name!r} is a directory; name one .jsonl, .json or .parquet file in it")
    if not found:
        raise FileNotFoundError(
            f"there is no file {name[:200]!r}, and it is no hub id (owner/name) either; check the spelling, or "
            "give a path that is absolute or starts where the program runs (in the notebooks: the project's folder)"
        )
    if split != "train" or revision is not None:
        raise ValueError(
            f"split={split!r} and revision={revision!r} are for hub data sets, but {name!r} is a file; drop them"
        )
    return name, file_rows(path, name)


def _read_hub(source: str, split: str, revision: str | None) -> Dataset:
    try:
        return datasets.load_dataset(source, split=split, revision=revision)
    except Exception as error:  # the hub's clients raise errors of four libraries
        raise ConnectionError(
            f"cannot load split {split!r} of the hub data set {source!r} (revision {revision or 'default'}): "
            f"{error}. If a file was meant, there is none of this name; otherwise check the id, the split "
            "and the network, or download the file"
        ) from error
