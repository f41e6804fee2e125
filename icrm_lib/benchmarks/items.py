"""Items of public benchmarks: RewardBench, RewardBench 2 and RM-Bench from the hub or from files, scored in one go.

Use:

    items = load_rewardbench2()                        # or load_rewardbench2("folder or file")
    print(items)                                       # where from, how many, what differs from the official set
    print(rewardbench2(score_items(items, model.score)))
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import numpy as np
import pandas as pd

from icrm_lib.rows import BadRow, file_rows
from icrm_lib.runtime import nearest
from icrm_lib.tokenization import Conversation

SUFFIXES = (".parquet", ".jsonl", ".json")


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark lies and what its official edition holds.

    Attributes:
        loader: the function of this module that reads it.
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


# Revisions: commits of the main branch, each later than the last change of data that is known. Sources: the pages
# huggingface.co/datasets/<hub>/commits/main, and public code that pins the same commits and checksums.
REWARDBENCH = Benchmark(
    loader="load_rewardbench",
    hub="allenai/reward-bench",
    revision="168d848cdbbea9764fae4a544dc9ca1e6cca4931",
    files=("filtered",),  # split "raw" is the set before its manual check and no benchmark
    rows={
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
        "math-prm": 447,
    }
    | {f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
    sha256={"filtered-00000-of-00001.parquet": "65473c20ed0627e02503557ae102c25c6b0e66b5ed69ee327e224bb95e70ca29"},
)
PRIOR = Benchmark(
    loader="load_prior_sets",
    hub="allenai/preference-test-sets",
    revision="0d1fa41424b53512142c01579802f6a5143aebfb",
    files=("anthropic_helpful", "anthropic_hhh", "shp", "summarize"),
    rows={"anthropic_helpful": 6192, "anthropic_hhh": 221, "shp": 1741, "summarize": 9000},
    sha256={},
)
REWARDBENCH2 = Benchmark(
    loader="load_rewardbench2",
    hub="allenai/reward-bench-2",
    revision="7ff08853b0d5686e79b13fda8677024f566a104a",
    files=("test",),
    rows={"Factuality": 475, "Precise IF": 160, "Math": 183, "Safety": 450, "Focus": 495, "Ties": 102},
    sha256={"test-00000-of-00001.parquet": "c8ec60efbd75d2f9dcba4121e6101f7a6015abc38a34e034ae2c7ae886265958"},
)
RMBENCH = Benchmark(
    loader="load_rmbench",
    hub="THU-KEG/RM-Bench",
    revision="5e094adbde982855284918147e84a169f7282a2a",
    files=("total_dataset",),
    rows={"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157},
    sha256={},
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


# The loaders -----------------------------------------------------------------------------------------------


def load_rewardbench(source: str | Path | None = None, *, revision: str | None = None) -> BenchmarkItems:
    """Read RewardBench (arXiv 2403.13787), split "filtered", for `benchmarks.rewardbench`.

    Columns read: `prompt` (text or list of messages), `chosen` and `rejected` (text), `subset`; `id` if there is one
    (it is not unique over subsets). A row that breaks this is an error, not left out: that would change the benchmark.

    Args:
        source: None for the hub; or a .parquet, .jsonl or .json file, or a folder with `filtered-*.parquet` (or
            .jsonl, .json) somewhere in it.
        revision: commit, tag or branch on the hub; `REWARDBENCH.revision` when None.

    Returns:
        items with the columns `subset`, `id`, `chosen`, `rejected` (one conversation each); 2985 of them officially.

    Raises:
        FileNotFoundError: no such file or folder, or the hub is out of reach and its cache does not hold the revision;
            the message says what to download.
        ValueError: not readable, a row of another form (the message says file and row), or a revision for a file.
    """

    def read(row: _Row) -> dict:
        return {"subset": row.name("subset", REWARDBENCH), "id": row.values.get("id")} | row.pair()

    return _load(REWARDBENCH, source, revision, read)


def load_prior_sets(source: str | Path | None = None, *, revision: str | None = None) -> BenchmarkItems:
    """Read the four prior preference sets of the RewardBench leaderboard, as further rows for `benchmarks.rewardbench`:

        pd.concat([score_items(load_rewardbench(), score), score_items(load_prior_sets(), score)])

    Columns read: `prompt` (list of messages, or text), `chosen` and `rejected` (text); `id` if there is one. The subset
    is the file's name; a column `subset` of these files is another one and not read.

    Args, Returns, Raises: as `load_rewardbench`; 17154 items officially. A folder holds one file a set, a single file
    is named after its set (`shp-00000-of-00001.parquet`, `shp.jsonl`).
    """

    def read(row: _Row) -> dict:
        if row.file not in PRIOR.rows:
            row.fail(f"unknown set {row.file!r}", f"name the file after its set: {', '.join(PRIOR.rows)}")
        return {"subset": row.file, "id": row.values.get("id")} | row.pair()

    return _load(PRIOR, source, revision, read)


def load_rewardbench2(source: str | Path | None = None, *, revision: str | None = None) -> BenchmarkItems:
    """Read RewardBench 2 (arXiv 2506.01937), split "test", for `benchmarks.rewardbench2`.

    Columns read: `id` (text; in Ties `ref:K` or `tied:K`, each once), `prompt` (text or list of messages), `chosen` and
    `rejected` (lists of texts; as many chosen ones as `num_correct`, and 1 + 3 outside Ties), `num_correct`, `subset`.

    Args, Raises: as `load_rewardbench`; a folder holds `test-*.parquet`.

    Returns:
        items with the columns `domain` (the file's `subset`), `id`, `num_correct` and `responses` (list of
        conversations, right answers first); 1865 of them officially.
    """
    seen: dict[str, str] = {}

    def read(row: _Row) -> dict:
        domain, name = row.name("subset", REWARDBENCH2), row.text("id")
        right, wrong = row.texts("chosen"), row.texts("rejected")
        shape = f"{len(right)} right and {len(wrong)} wrong responses"
        if row.get("num_correct") != len(right):
            row.fail(f"{shape}, but num_correct {row.get('num_correct')!r}", _DAMAGED)
        if not right or not wrong or (domain != "Ties" and (len(right), len(wrong)) != (1, 3)):
            row.fail(f"{shape}; a Ties item has some of each, any other 1 and 3", _DAMAGED)
        if domain == "Ties":
            if not re.match(r"(ref|tied):.", name):
                row.fail(f"Ties id {name!r} is neither 'ref:K' nor 'tied:K'", "keep the ids of the official file")
            if name in seen:
                row.fail(f"Ties id {name!r} stands twice, first at {seen[name]}", "keep one of the two rows")
            seen[name] = row.place
        responses = row.conversations([*right, *wrong])
        return {"domain": domain, "id": name, "num_correct": len(right), "responses": responses}

    return _load(REWARDBENCH2, source, revision, read)


def load_rmbench(source: str | Path | None = None, *, revision: str | None = None) -> BenchmarkItems:
    """Read RM-Bench (arXiv 2410.16184), file `total_dataset.json`, for `benchmarks.rmbench`.

    Columns read: `prompt` (text or list of messages), `chosen` and `rejected` (lists of 3 texts: concise, detailed,
    detailed with markdown), `domain`; `id` if there is one. The authors' files of one domain (`chat_filtered.json`,
    ...) have no `domain` and cannot be read.

    Args, Raises: as `load_rewardbench`; a folder holds `total_dataset.json`.

    Returns:
        items with the columns `domain`, `id`, `chosen` and `rejected` (lists of 3 conversations); 1327 of them
        officially.
    """

    def read(row: _Row) -> dict:
        if "domain" not in row.values:
            row.fail("no 'domain'", "only total_dataset.json has it, the files of one domain do not: load that file")
        sides = {side: row.conversations(row.texts(side, 3)) for side in ("chosen", "rejected")}
        return {"domain": row.name("domain", RMBENCH), "id": row.values.get("id")} | sides

    return _load(RMBENCH, source, revision, read)


def score_items(items: BenchmarkItems, score: Callable[[list[Conversation]], Sequence[float]]) -> pd.DataFrame:
    """Score every response of a benchmark, each different conversation once, all in one call.

    Args:
        items: of one of the loaders.
        score: takes N conversations, returns N numbers; e.g. `RewardModel.score`.

    Returns:
        the items with scores in place of conversations, in their order: what the benchmark's function in `benchmarks`
        takes. `responses` becomes `scores`.

    Raises:
        ValueError: `score` did not return one number a conversation.
    """
    columns = [name for name in ("chosen", "rejected", "responses") if name in items.frame]
    place: dict[tuple, int] = {}
    different: list[Conversation] = []

    def number(cell: list) -> int | list[int]:
        """Return the number of a conversation, in the order of the first appearance; of a list of them, the list."""
        if not isinstance(cell[0], dict):
            return [number(conversation) for conversation in cell]
        key = tuple((message["role"], message["content"]) for message in cell)
        if key not in place:
            place[key] = len(different)
            different.append(cell)
        return place[key]

    numbers = {name: [number(cell) for cell in items.frame[name]] for name in columns}
    scores = np.asarray(score(different), dtype=float)
    if scores.shape != (len(different),):
        raise ValueError(
            f"score returned shape {scores.shape} for {len(different)} conversations; return one number each"
        )
    scored = {name: [scores[at].tolist() for at in numbers[name]] for name in columns}
    return items.frame.assign(**scored).rename(columns={"responses": "scores"})


# One row ---------------------------------------------------------------------------------------------------

_DAMAGED = "the file is damaged or another data set; take the official one"
_TYPES = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "nothing"}


@dataclass(frozen=True)
class _Row:
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

    def name(self, key: str, benchmark: Benchmark) -> str:
        """Return the part of the benchmark that the row belongs to."""
        name = self.text(key)
        if name not in benchmark.rows:
            self.fail(f"unknown {key} {name!r}", nearest(name, list(benchmark.rows)))
        return name

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            self.fail(f"{key!r} is {_type(value)}, not a text", _DAMAGED)
        return value

    def texts(self, key: str, count: int | None = None) -> list[str]:
        values = self.get(key)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            found = _type(values) if not isinstance(values, list) else "a list with something else in it"
            self.fail(f"{key!r} is {found}, not a list of texts", _DAMAGED)
        if count is not None and len(values) != count:
            self.fail(f"{key!r} holds {len(values)} responses, not {count}", _DAMAGED)
        return values

    def prompt(self) -> Conversation:
        """Return the prompt as a conversation that ends with the user's turn."""
        value = self.get("prompt")
        if isinstance(value, str):
            return [{"role": "user", "content": value}]
        if not isinstance(value, list):
            self.fail(f"'prompt' is {_type(value)}", "give a text or a list of messages")
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


def _type(value: Any) -> str:
    return _TYPES.get(type(value), "a number")


# Files -----------------------------------------------------------------------------------------------------


def _load(
    benchmark: Benchmark, source: str | Path | None, revision: str | None, read: Callable[[_Row], dict]
) -> BenchmarkItems:
    name, files, commit = _find(benchmark, source, revision)
    rows, sha256 = [], {}
    for path in files:
        rows += [read(_Row(values, f"{path.name}:{line}", _stem(path))) for line, values in _rows(path)]
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


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield the rows of a file with their numbers (lines of a file with one object a line), both from 1."""
    for line, row in file_rows(path):
        if isinstance(row, BadRow):
            raise ValueError(f"{path.name}:{line}: {row}") from row
        if not isinstance(row, dict):
            raise ValueError(f"{path.name}:{line}: the row is {_type(row)}; write each row as one JSON object")
        yield line, row
