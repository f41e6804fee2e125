"""A benchmark's files: where they come from, what differs in them, what their rows must hold."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pandas as pd

from icrm_lib.rows import BadRow, file_rows
from icrm_lib.runtime import nearest
from icrm_lib.tokenization import Conversation

DAMAGED = "the file is damaged or another data set; take the official one"
_TYPES = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "nothing"}
SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies and what its official edition holds.

    Attributes:
        loader: the function of `benchmarks` that reads it.
        hub: id of the data set on the hub.
        revision: commit of `hub` that is read unless another is asked for: one of the main branch, later than the last
            change of data that is known, from the page huggingface.co/datasets/<hub>/commits/main and from public code
            that pins the same commit and checksum.
        files: names of the data files, without shard number and suffix.
        rows: name of each part -> number of its rows.
        sha256: name of a data file -> SHA-256 of its bytes at `revision`, where it is known.
    """

    loader: str
    hub: str
    revision: str
    files: tuple[str, ...]
    rows: dict[str, int]
    sha256: dict[str, str]

    def how_to_get(self, revision: str | None = None) -> str:
        """Return a sentence that says how to bring the data to a machine without network."""
        folder = self.hub.rpartition("/")[2]
        return (
            f"where there is a network, run `hf download {self.hub} --repo-type dataset --revision "
            f"{revision or self.revision} --local-dir {folder}`, copy the folder here and pass its path: "
            f"{self.loader}({folder!r})"
        )


@dataclass(frozen=True)
class BenchmarkItems:
    """The items of a benchmark, ready for `score_items`; `print(items)` shows where they come from.

    Attributes:
        frame: one row an item; the columns are those of the loader. A response is a whole conversation, a list of
            {"role", "content"} that ends with the assistant's turn.
        source: hub id, or the path as it was given (of an absolute one, the last part).
        commit: commit of the hub's repository, where it is known: from the hub, and for a folder that `hf download`
            made; else None.
        sha256: name of each data file -> SHA-256 of its bytes.
        notes: what differs from the official edition: number of rows, commit, bytes. Empty when nothing does.
    """

    frame: pd.DataFrame
    source: str
    commit: str | None
    sha256: dict[str, str]
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.frame)

    def __str__(self) -> str:
        head = f"{self.source}: {len(self)} items, commit {self.commit or 'unknown'}"
        return "\n".join([head, *(f"  note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Row:
    """A row of a data file; what is wrong with it is raised as ValueError with its place."""

    values: dict[str, Any]
    place: str  # file:row
    file: str  # name of the file without shard number and suffix

    def fail(self, reason: str, remedy: str) -> NoReturn:
        raise ValueError(f"{self.place}: {reason}; {remedy}")

    def get(self, key: str) -> Any:
        if key not in self.values:
            self.fail(f"no {key!r}", f"rename or add it (columns here: {', '.join(self.values) or 'none'})")
        return self.values[key]

    def name(self, key: str, parts: Collection[str]) -> str:
        """Return the part of the benchmark that the row belongs to."""
        name = self.text(key)
        if name not in parts:
            self.fail(f"unknown {key} {name!r}", nearest(name, list(parts)))
        return name

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            self.fail(f"{key!r} is {_type_of(value)}, not a text", DAMAGED)
        return value

    def texts(self, key: str, count: int | None = None) -> list[str]:
        values = self.get(key)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            found = _type_of(values) if not isinstance(values, list) else "a list with something else in it"
            self.fail(f"{key!r} is {found}, not a list of texts", DAMAGED)
        if count is not None and len(values) != count:
            self.fail(f"{key!r} holds {len(values)} responses, not {count}", DAMAGED)
        return values

    def prompt(self) -> Conversation:
        """Return the prompt as a conversation that ends with the user's turn."""
        value = self.get("prompt")
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if not isinstance(value, list):
            self.fail(f"'prompt' is {_type_of(value)}", "give a text or a list of messages")
        for message in value:
            parts = [message.get(part) for part in ("role", "content")] if isinstance(message, dict) else [None]
            if not all(isinstance(part, str) for part in parts) or parts[0] not in ("system", "user", "assistant"):
                self.fail(
                    f"'prompt' holds the message {str(message)[:60]!r}",
                    'give {"role": system, user or assistant, "content": text}',
                )
        if not value or value[-1]["role"] != "user":
            last = f"ends with the {value[-1]['role']}'s turn" if value else "is empty"
            self.fail(f"'prompt' {last}", "end with the user's turn; the responses follow it")
        return [{"role": message["role"], "content": message["content"]} for message in value]

    def conversations(self, responses: Sequence[str]) -> list[Conversation]:
        prompt = self.prompt()
        return [[*prompt, {"role": "assistant", "content": response}] for response in responses]

    def pair(self) -> dict[str, Conversation]:
        sides = ("chosen", "rejected")
        return dict(zip(sides, self.conversations([self.text(side) for side in sides]), strict=True))


def load(
    benchmark: Benchmark, source: str | Path | None, revision: str | None, read: Callable[[Row], dict]
) -> BenchmarkItems:
    name, files, commit = _find(benchmark, source, revision)
    rows, sha256 = [], {}
    for path in files:
        rows += [read(Row(values, f"{path.name}:{line}", _stem(path))) for line, values in _dict_rows(path)]
        sha256[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if not rows:
        raise ValueError(f"{name}: no rows; {benchmark.how_to_get()}")
    frame = pd.DataFrame(rows)
    return BenchmarkItems(frame, name, commit, sha256, tuple(_differences(benchmark, frame, commit, sha256)))


def _differences(
    benchmark: Benchmark, frame: pd.DataFrame, commit: str | None, sha256: dict[str, str]
) -> Iterator[str]:
    """Yield what differs from the official edition."""
    counts = Counter(frame[frame.columns[0]])
    if different := [f"{name} {counts[name]} of {n}" for name, n in benchmark.rows.items() if counts[name] != n]:
        more = f", and {len(different) - 5} more" if len(different) > 5 else ""
        yield (
            f"{len(frame)} items, officially {sum(benchmark.rows.values())} ({', '.join(different[:5])}{more}): a "
            "score of these is not comparable with published ones"
        )
    if commit not in (None, benchmark.revision):
        yield f"commit {commit} is not the one checked for this kit, {benchmark.revision}"
    for name, digest in sha256.items():
        if digest != benchmark.sha256.get(name, digest):
            yield f"{name} is another file than that of commit {benchmark.revision} (SHA-256 {digest})"


def _find(benchmark: Benchmark, source: str | Path | None, revision: str | None) -> tuple[str, list[Path], str | None]:
    """Return name, data files and commit of a source."""
    if source is None:
        folder = _snapshot(benchmark, revision or benchmark.revision)
        return benchmark.hub, _data_files(folder, benchmark), folder.name
    path = Path(source).expanduser()
    name = path.name if path.is_absolute() else str(source)
    if revision is not None:
        raise ValueError(f"revision={revision!r} is for the hub, but {name!r} is a path; drop one of the two")
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {name!r}; check the path, or {benchmark.how_to_get()}")
    if not path.is_dir():
        return name, [path], None
    folder = path.resolve()
    files = _data_files(folder, benchmark)
    return name, files, _commit(folder, files[0])


def _snapshot(benchmark: Benchmark, revision: str) -> Path:
    """Return the hub's files as a folder named after their commit.

    `datasets.load_dataset` is not used: without network it takes whatever revision it saw last.
    """
    patterns = [f"*{name}{end}" for name in benchmark.files for end in ("-*", ".*")]
    try:
        options = {"repo_type": "dataset", "revision": revision, "allow_patterns": patterns}
        return Path(huggingface_hub.snapshot_download(benchmark.hub, **options))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise FileNotFoundError(
            f"{benchmark.hub} at revision {revision} is neither in the hub's cache nor can it be fetched: {error}\n"
            f"Check id, revision and network; or, {benchmark.how_to_get(revision)}"
        ) from error


def _data_files(folder: Path, benchmark: Benchmark) -> list[Path]:
    """Return the benchmark's files in a folder, in the order of their shards."""
    inside = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    usable = [path for path in inside if path.suffix in SUFFIXES and not any(p.startswith(".") for p in path.parts)]
    named = [path for path in usable if _stem(path) in benchmark.files]
    if not named and len(benchmark.files) == len(usable) == 1:
        named = usable
    if not named:
        raise FileNotFoundError(
            f"{folder.name} holds no file named {' or '.join(benchmark.files)} ({', '.join(SUFFIXES)}); it has "
            f"{', '.join(map(str, usable[:5])) or 'no data file'}. Name the file itself, or {benchmark.how_to_get()}"
        )
    copies = {(_stem(path), path.parent, path.suffix) for path in named}
    if len(copies) > len({stem for stem, *_ in copies}):
        raise ValueError(f"{folder.name} holds the data twice: {', '.join(map(str, named))}; name the one to read")
    return [folder / path for path in named]


def _stem(path: Path) -> str:
    return re.sub(r"(-\d+-of-\d+(-\w+)?)?\.\w+$", "", path.name)


def _commit(folder: Path, file: Path) -> str | None:
    """Return the commit of a folder from the hub's cache or of `hf download --local-dir`, where it can be told."""
    if re.fullmatch("[0-9a-f]{40}", folder.name):
        return folder.name
    record = folder / ".cache/huggingface/download" / f"{file.relative_to(folder)}.metadata"
    first = record.read_text().partition("\n")[0].strip() if record.is_file() else ""
    return first if re.fullmatch("[0-9a-f]{40}", first) else None


def _type_of(value: Any) -> str:
    return _TYPES.get(type(value), "a number")


def _dict_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield the rows of a file with their numbers (lines of a file with one object a line), both from 1."""
    for line, row in file_rows(path):
        if isinstance(row, BadRow):
            raise ValueError(f"{path.name}:{line}: {row}") from row
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}:{line}: the row is {_type_of(row)}; write each row as one JSON object")
        yield line, row
