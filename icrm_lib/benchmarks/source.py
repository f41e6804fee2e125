"""Where a benchmark's files come from: the hub at a pinned commit, a folder or a file; and what differs in them."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import pandas as pd

from icrm_lib.benchmarks.row import Row, dict_rows

SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies and what its official edition holds.

    Attributes:
        loader: the function of `benchmarks` that reads it.
        hub: id of the data set on the hub.
        revision: commit of `hub` that is read unless another is asked for.
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


def load(
    benchmark: Benchmark, source: str | Path | None, revision: str | None, read: Callable[[Row], dict]
) -> BenchmarkItems:
    name, files, commit = find(benchmark, source, revision)
    rows, sha256 = [], {}
    for path in files:
        rows += [read(Row(values, f"{path.name}:{line}", _stem(path))) for line, values in dict_rows(path)]
        sha256[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if not rows:
        raise ValueError(f"{name}: no rows; {benchmark.how_to_get()}")
    frame = pd.DataFrame(rows)
    return BenchmarkItems(frame, name, commit, sha256, tuple(differences(benchmark, frame, commit, sha256)))


def differences(benchmark: Benchmark, frame: pd.DataFrame, commit: str | None, sha256: dict[str, str]) -> Iterator[str]:
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


def find(benchmark: Benchmark, source: str | Path | None, revision: str | None) -> tuple[str, list[Path], str | None]:
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
        return Path(
            huggingface_hub.snapshot_download(
                benchmark.hub, repo_type="dataset", revision=revision, allow_patterns=patterns
            )
        )
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
