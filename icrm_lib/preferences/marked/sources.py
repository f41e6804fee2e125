"""Where the data with marked places are published, at one commit each, and their files: local ones or from there."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from datasets import Dataset

from icrm_lib import runtime
from icrm_lib.preferences.prompts import identify_prompt
from icrm_lib.preferences.report import Report

SECONDS = 60  # without a byte from the address


@dataclass(frozen=True)
class PublishedFile:
    """A file of a public repository at a commit.

    Attributes:
        url: of the bytes at that commit.
        sha256: of these bytes.
        names: what a copy may be called, the published name first.
    """

    url: str
    sha256: str
    names: tuple[str, ...]

    def how_to_get(self) -> str:
        """Return a sentence that says how to bring the file to a machine without network."""
        return (
            f"where there is a network, run `curl -L -o {self.names[0]} {self.url}`, copy the file here and name "
            "its folder as files="
        )


class Marked(NamedTuple):
    """Pairs and marked responses of one source.

    Attributes:
        pairs: as of `load_preferences`, with `chosen_spans`, `rejected_spans`.
        responses: as of `load_spans`.
        reports: on the pairs and on the responses.
    """

    pairs: Dataset
    responses: Dataset
    reports: tuple[Report, Report]


_QA = "https://raw.githubusercontent.com/allenai/FineGrainedRLHF/a1469d4eba0b3754bcb343beb88f0aca24bf4848"
_MQM = "https://raw.githubusercontent.com/google/wmt-mqm-human-evaluation/7fadea281aff8db61cc72fc3d469a4dca78b82a6"
# A mirror of Qwen's benchmark, in files of one JSON array.
_PROCESS = "https://raw.githubusercontent.com/ljxzs-jjlzs/ProcessBench/e607025b8d00e46838d5b84170c96529ba19c53d"

QA_FEEDBACK = PublishedFile(
    f"{_QA}/tasks/qa_feedback/data/dev_feedback.json",
    "f394289ecfdc5a2d1663170254b92d75ad3c53ba36df9f627c70d4c6fc4f3291",
    ("dev_feedback.json", "qa_feedback_400.json"),
)
MQM_TED_ZHEN = PublishedFile(
    f"{_MQM}/ted/zhen/mqm_ted_zhen.tsv",
    "d91fc0dd21c1949f1e7570671d01ceb1798ebd8d7ea8998844b1a35983de4ed3",
    ("mqm_ted_zhen.tsv",),
)
_SUBSETS = {
    "gsm8k": "fb1c59dfd1e83e1c5a48dbe598db27e4bc0b8bc524a09445f2d4b69178f61349",
    "math": "60cb0d7a69cbec98d43cf50855b9b7e7294599c3c9a24bdd031abd18c3b6b136",
    "olympiadbench": "e9d801c9f3c03f949adbfa08e90cb21ad85c0b9224bc5e98326f8215c218aa55",
    "omnimath": "e8d7cf4512c82168dae2fe48b1718069a3002e7910af1d180a27ee0d9948ba47",
}
PROCESS_BENCH = {
    name: PublishedFile(f"{_PROCESS}/code/dataset/{name}.json", sha256, (f"processbench_{name}.json", f"{name}.json"))
    for name, sha256 in _SUBSETS.items()
}


@contextmanager
def opened(file: PublishedFile, files: str | Path) -> Iterator[tuple[Path, list[str]]]:
    """Give the path of a file while the block runs, and notes on how it differs from the published one.

    Args:
        file: which.
        files: a folder with it, or a file in its format; empty for the published address, of which nothing is kept.

    Raises:
        FileNotFoundError: there is no such file.
        ConnectionError: the address cannot be read.
        ValueError: what the address gives is not the published file.
    """
    if files:
        path = _local(file, runtime.resolve_path(files))
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        same = found == file.sha256
        yield path, [] if same else [f"{path.name} is another file than the published one (SHA-256 {found})"]
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file.names[0]
        path.write_bytes(_fetched(file))
        yield path, []


def _local(file: PublishedFile, path: Path) -> Path:
    if path.is_file():
        return path
    found = [path / name for name in file.names if (path / name).is_file()]
    if not found:
        raise FileNotFoundError(
            f"there is no {' or '.join(file.names)} in {runtime.display_path(path)}; {file.how_to_get()}"
        )
    return found[0]


def _fetched(file: PublishedFile) -> bytes:
    try:
        with urlopen(file.url, timeout=SECONDS) as stream:
            data = stream.read()
    except OSError as error:  # no network, no such address, a time limit
        raise ConnectionError(f"cannot read {file.url}: {error}; {file.how_to_get()}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != file.sha256:
        raise ValueError(
            f"{file.url} gave another file than the published one (SHA-256 {found}, not {file.sha256}); "
            f"{file.how_to_get()}"
        )
    return data


def identified(dataset: Dataset, questions: dict[int, str]) -> Dataset:
    """Return the rows with the `prompt_id` of their question, whatever was added to it or left out of it.

    Args:
        dataset: with columns `line` and `prompt_id`.
        questions: line -> text.
    """
    lines = dataset["line"][:]
    ids = {line: identify_prompt([{"role": "user", "content": questions[line]}]) for line in set(lines)}
    name = dataset.info.description
    dataset = dataset.remove_columns("prompt_id").add_column("prompt_id", [ids[line] for line in lines])
    dataset.info.description = name
    return dataset
