r"""The data of the paper's settings as recipes: from the published files to training, validation and test pairs.

- "unified-feedback": every `stride`-th row of Unified-Feedback, tested on its split `val`.
- "skywork+unified-feedback": Skywork's pairs without every tenth, and Unified-Feedback; tested on the tenth.
- "prm800k": solutions of PRM800K's problems, sampled here and labelled by their boxed answers.

Rows go through in small batches into Arrow files, so 800,000 pairs take no more memory than 8,000.
"""

import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from icrm_lib import records, runtime
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.sampling import SamplingSettings, sample
from icrm_lib.preferences.files import BadRow, file_rows
from icrm_lib.preferences.loading import (
    LABEL_KEYS,
    PromptIds,
    Refusal,
    Report,
    collect_preferences,
    identify_prompt,
    open_preferences,
    split_by_prompt,
)
from icrm_lib.profiles import DataSettings, SampleSettings, nearest
from icrm_lib.tokenization import Conversation

SPLITS = ("train", "validation", "test")
REPORTS = "reports.json"
SUMMARIZE = "Generate one-sentence summary for the following post: "
HELD_OUT = 10  # of Skywork's pairs every so many-th is for the test
SHARES = (0.94, 0.03, 0.03)  # of PRM800K's problems; the paper trains on all and has no such test
SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz")

Rows = Iterator[tuple[int, Any]]  # line from 1, row
Draw = Callable[[list[Conversation]], list[list[str]]]  # prompts -> the responses to each


@dataclass(frozen=True)
class Source:
    """Where a data set is published.

    Attributes:
        name: hub id, or for `url` the project's.
        splits: published splits that a recipe reads; files are named after them.
        download: command that brings the files to a machine with a network.
        config: the hub data set's configuration; empty for its only one.
        url: address of a file of JSON lines outside the hub; empty for a hub data set.
    """

    name: str
    splits: tuple[str, ...]
    download: str
    config: str = ""
    url: str = ""

    @property
    def folder(self) -> str:
        """Name of the folder that `download` makes."""
        return self.name.rpartition("/")[2]

    def how_to_get(self) -> str:
        """Return a sentence that says how to bring the data to a machine without network."""
        return (
            f"where there is a network, run `{self.download}`, copy the folder {self.folder!r} here and name the "
            "folder it lies in under data: files"
        )


def _hub(name: str, splits: tuple[str, ...], config: str = "") -> Source:
    only = f" --include '{config}/*'" if config else ""
    download = f"hf download {name} --repo-type dataset{only} --local-dir {name.rpartition('/')[2]}"
    return Source(name, splits, download, config)


UNIFIED_FEEDBACK = _hub("llm-blender/Unified-Feedback", ("train", "val"), "all")
SKYWORK = _hub("Skywork/Skywork-Reward-Preference-80K-v0.2", ("train",))
PRM800K = Source(
    "openai/prm800k",
    ("phase2_train",),
    "curl -L --create-dirs -O --output-dir prm800k "
    "https://github.com/openai/prm800k/raw/main/prm800k/data/phase2_train.jsonl",
    url="https://github.com/openai/prm800k/raw/main/prm800k/data/phase2_train.jsonl",
)
RECIPES = {
    "unified-feedback": (UNIFIED_FEEDBACK,),
    "skywork+unified-feedback": (SKYWORK, UNIFIED_FEEDBACK),
    "prm800k": (PRM800K,),
}


# A recipe --------------------------------------------------------------------------------------------------


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
        draw: for "prm800k", returns an even number of sampled solutions a problem; see `sampler`.
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
            reports = _make_prm800k(data, folder, draw, seed)
        else:
            make = _make_unified if name == "unified-feedback" else _make_skywork
            reports = make(data, folder)
        write_reports(folder, reports)
    reports = read_reports(folder)
    opened = zip(SPLITS, reports[-len(SPLITS) :], strict=True)
    return {split: open_preferences(folder / f"{split}.arrow", report.source) for split, report in opened}, reports


def write_reports(folder: Path, reports: list[Report]) -> None:
    """Write `reports.json`."""
    records.write_json(folder / REPORTS, [asdict(report) for report in reports])


def read_reports(folder: Path) -> list[Report]:
    """Read what `write_reports` wrote."""
    return [
        Report(**{**values, "refusals": [Refusal(**refusal) for refusal in values["refusals"]]})
        for values in records.read_json(folder / REPORTS)
    ]


def recipe_key(name: str, data: DataSettings) -> dict[str, Any]:
    """Return what a recipe's rows depend on beside code, sampler and seed: the hub's names, or the files' checksums.

    Raises:
        FileNotFoundError: as `load_recipe`.
    """
    key: dict[str, Any] = {"recipe": name, "stride": data.stride}
    for source in RECIPES[name]:
        key[source.name] = source.config or source.url
        if data.files:
            files = [path for split in source.splits for path in _files(source, split, data.files, RECIPES[name])]
            key[source.name] = [[path.name, records.file_checksum(path)] for path in files]
    return key


class _Splits:
    """The splits of one recipe as they are written, and the prompts that they hold."""

    def __init__(self, name: str, folder: Path, carry: tuple[str, ...] = ()):
        self.name, self.folder, self.carry = name, folder, carry
        self.prompts: dict[str, PromptIds] = {}
        self.reports: dict[str, Report] = {}

    def write(self, split: str, rows: Rows, notes: list[str]) -> None:
        """Write the rows whose prompts are in no split before; `notes` may be filled while they pass."""
        dataset, report = collect_preferences(
            f"{self.name} ({split})",
            rows,
            file=self.folder / f"{split}.arrow",
            carry=self.carry,
            without=self.prompts,
        )
        report.notes[:0] = notes
        self.prompts[split] = PromptIds(dataset)
        self.reports[split] = report

    def in_order(self) -> list[Report]:
        return [self.reports[split] for split in SPLITS]


# Where rows come from --------------------------------------------------------------------------------------


def _rows(source: Source, split: str, data: DataSettings, sources: tuple[Source, ...]) -> Rows:
    """Yield the rows of a published split in their order, from the files or from the network; nothing is kept."""
    if data.files:
        last = 0
        for path in _files(source, split, data.files, sources):
            before = last
            for line, row in file_rows(path):
                last = before + line
                yield last, row
        return
    try:
        if source.url:  # as text: the JSON reader wants one schema for all rows, and these have several
            lines = datasets.load_dataset("text", data_files=source.url, split="train", streaming=True)
            yield from ((number, _parsed(row["text"])) for number, row in enumerate(lines, 1))
        else:
            streamed = datasets.load_dataset(source.name, source.config or None, split=split, streaming=True)
            yield from enumerate(streamed, 1)
    except Exception as error:  # the hub's clients raise errors of four libraries
        raise ConnectionError(f"cannot read {source.name}, split {split!r}: {error}; {source.how_to_get()}") from error


def _files(source: Source, split: str, folder: str, sources: tuple[Source, ...]) -> list[Path]:
    """Return the files of a published split, in order: `train-00000-of-00002.parquet`, `val.jsonl`, ...

    They lie in a folder named after the data set; where a recipe reads one only, also in `folder` itself.
    """
    top = runtime.resolve_path(folder)
    root = top / source.folder if len(sources) > 1 or (top / source.folder).is_dir() else top
    of_split = re.compile(rf"(.+[-_.])?{split}[-_.].*")
    found = [path for path in sorted(root.rglob("*")) if path.is_file() and of_split.fullmatch(path.name)]
    found = [path for path in found if path.name.endswith(SUFFIXES)]
    # A whole download has one folder a configuration.
    found = [path for path in found if source.config in path.relative_to(root).parts[:-1]] or found
    if not found:
        raise FileNotFoundError(
            f"no file of split {split!r} of {source.name} in {runtime.display_path(root)} (looked for "
            f"{split}-*.parquet, {split}.jsonl and the like); {source.how_to_get()}"
        )
    return found


# Unified-Feedback and Skywork ------------------------------------------------------------------------------


def _make_unified(data: DataSettings, folder: Path) -> list[Report]:
    splits, notes = _Splits("unified-feedback", folder), []
    sources = RECIPES[splits.name]
    rows = _rows(UNIFIED_FEEDBACK, "train", data, sources)
    splits.write("train", _unified_rows(rows, data.stride, 0, notes), notes)
    _write_val(splits, "test", data, sources)
    _write_val(splits, "validation", data, sources)
    return splits.in_order()


def _make_skywork(data: DataSettings, folder: Path) -> list[Report]:
    splits = _Splits("skywork+unified-feedback", folder)
    sources = RECIPES[splits.name]
    notes: list[str] = []
    rest = _tenth(_rows(SKYWORK, "train", data, sources), False, notes)
    unified = _unified_rows(_rows(UNIFIED_FEEDBACK, "train", data, sources), data.stride, 0, notes)
    splits.write("train", _one_after_the_other(rest, unified, notes), notes)
    held_out: list[str] = []
    splits.write("test", _tenth(_rows(SKYWORK, "train", data, sources), True, held_out), held_out)
    _write_val(splits, "validation", data, sources)
    return splits.in_order()


def _write_val(splits: _Splits, split: str, data: DataSettings, sources: tuple[Source, ...]) -> None:
    """Write test or validation rows from the split `val` of Unified-Feedback: the stride's rows, and those half-way.

    Stride 1 would leave nothing to validate on, so there the two splits take turns.
    """
    step, notes = max(data.stride, 2), []
    offset = 0 if split == "test" else step // 2
    splits.write(split, _unified_rows(_rows(UNIFIED_FEEDBACK, "val", data, sources), step, offset, notes), notes)


def _unified_rows(rows: Rows, step: int, offset: int, notes: list[str]) -> Rows:
    """Yield every `step`-th of the rows with different ratings, from number `offset` on, as preference rows."""
    place = equal = 0
    for line, row in rows:
        try:
            difference = _rating_difference(row)
        except BadRow as bad:
            yield line, bad
            continue
        if difference == 0:
            equal += 1
            continue
        if place % step == offset:
            yield line, _first_turn(row, difference)
        place += 1
    notes.append(
        f"{UNIFIED_FEEDBACK.name}: {equal} rows with equal ratings dropped; of the {place} others those at "
        f"{offset}, {offset + step}, {offset + 2 * step}, ... taken (counted from 0)"
    )


def _rating_difference(row: Any) -> float:
    if isinstance(row, BadRow):
        raise row
    ratings = [row.get(f"conv_{side}_rating") if isinstance(row, dict) else None for side in "AB"]
    if not all(isinstance(rating, int | float) and math.isfinite(rating) for rating in ratings):
        raise BadRow("no two ratings", f"found {ratings}; conv_A_rating and conv_B_rating must be numbers")
    return float(ratings[0]) - float(ratings[1])


def _first_turn(row: dict, difference: float) -> dict[str, Any]:
    """Return a row of Unified-Feedback as a preference row: the first question with its two answers."""
    talks = [row.get(f"conv_{side}") for side in "AB"]
    talks = [talk[:2] if isinstance(talk, list) else talk for talk in talks]
    source = row.get("source")
    if isinstance(source, str) and "summarize" in source:
        talks = [_asked_to_summarize(talk) for talk in talks]
    chosen, rejected = talks if difference > 0 else talks[::-1]
    return {"chosen": chosen, "rejected": rejected, "margin": abs(difference), "source": source}


def _asked_to_summarize(talk: Any) -> Any:
    match talk:
        case [{"role": role, "content": str(post)}, *answer]:
            return [{"role": role, "content": SUMMARIZE + post.strip()}, *answer]
    return talk  # refused later, with the reason


def _tenth(rows: Rows, held_out: bool, notes: list[str]) -> Rows:
    """Yield the held-out pairs of Skywork (0, 10, 20, ... counted from 0), or all others."""
    count = 0
    for place, (line, row) in enumerate(rows):
        if (place % HELD_OUT == 0) == held_out:
            count += 1
            yield line, row
    notes.append(f"{SKYWORK.name}: {count} pairs {'held out' if held_out else 'not held out'}, one in {HELD_OUT} is")


def _one_after_the_other(first: Rows, second: Rows, notes: list[str]) -> Rows:
    # A row is known by its line, so the second's go on where the first's end.
    last = 0
    for last, row in first:
        yield last, row
    yield from ((last + line, row) for line, row in second)
    notes.append(f"line {last + 1} and on: line 1 and on of {UNIFIED_FEEDBACK.name}")


# PRM800K ---------------------------------------------------------------------------------------------------


def sampler(
    model: str | Path, tokenizer: PreTrainedTokenizerBase, samples: SampleSettings, path: str | Path, *, seed: int
) -> Draw:
    """Return what draws `samples.n` solutions a problem from a model; a killed run goes on where it was.

    Args:
        model: directory or hub id of the causal language model, the generator in the paper.
        tokenizer: its tokenizer, prepared.
        samples: number, temperature, nucleus, length and engine.
        path: JSON-lines file for what was drawn, see `sampling.sample`.
        seed: with the problem, decides its solutions.
    """
    settings = SamplingSettings(samples.n, samples.temperature, samples.top_p, samples.max_new_tokens, seed)

    def draw(prompts: list[Conversation]) -> list[list[str]]:
        loaded = str(model) if samples.engine == "vllm" else load_causal_lm(model)
        frame = sample(loaded, tokenizer, prompts, settings, path, engine=samples.engine)
        return frame.groupby("prompt", sort=True)["response"].agg(list).tolist()

    return draw


def _make_prm800k(data: DataSettings, folder: Path, draw: Draw | None, seed: int) -> list[Report]:
    if draw is None:
        raise ValueError("prm800k needs solutions and draw is None; pass draw=paper_data.sampler(...)")
    splits = _Splits("prm800k", folder, LABEL_KEYS)
    problems, report = _problems(_rows(PRM800K, "phase2_train", data, RECIPES["prm800k"]))
    prompts = [[{"role": "user", "content": problem}] for problem in problems["problem"]]
    drawn = draw(prompts)
    sizes = sorted({len(solutions) for solutions in drawn})
    if len(drawn) != len(prompts) or len(sizes) > 1 or sizes[0] < 2 or sizes[0] % 2:
        raise ValueError(
            f"{len(prompts)} problems have {len(drawn)} answers with {sizes} solutions each; every one needs the same "
            "even number of them, as two make a pair: correct samples: n"
        )
    for split, part in zip(SPLITS, split_by_prompt(problems, SHARES, seed), strict=True):
        notes: list[str] = []
        splits.write(split, _solution_pairs(part, drawn, notes), notes)
    return [report, *splits.in_order()]


def _problems(rows: Rows) -> tuple[Dataset, Report]:
    """Return the distinct problems (columns `problem`, `answer`, `prompt_id`, `place`), each where it occurs first."""
    report, found, count = Report("prm800k (problems)"), {}, 0
    for count, (line, row) in enumerate(rows, 1):  # noqa: B007 (read below)
        try:
            problem, answer = _question(row)
        except BadRow as bad:
            report.refusals.append(Refusal(report.source, line, bad.reason, bad.remedy))
            continue
        found.setdefault(identify_prompt([{"role": "user", "content": problem}]), (problem, answer))
    report.kept = len(found)
    report.notes.append(f"{count} rows are solutions of {len(found)} distinct problems, each of which is kept once")
    if not found:
        raise ValueError(f"no problem with an answer:\n{report}")
    columns = {name: [texts[i] for texts in found.values()] for i, name in enumerate(("problem", "answer"))}
    return Dataset.from_dict({**columns, "prompt_id": list(found), "place": list(range(len(found)))}), report


def _question(row: Any) -> tuple[str, str]:
    if isinstance(row, BadRow):
        raise row
    match row:
        case {"question": {"problem": str(problem), "ground_truth_answer": str(answer)}}:
            if problem.strip() and answer.strip():
                return problem, answer
    raise BadRow("no problem with an answer", "question: problem and ground_truth_answer must be texts, not empty")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        return BadRow("JSON syntax error", f"{error}; download the file again")


def _solution_pairs(problems: Dataset, drawn: list[list[str]], notes: list[str]) -> Rows:
    """Yield each problem's solutions two by two, the right one as chosen; without a difference the earlier one."""
    counts: Counter[str] = Counter()
    for problem in problems:
        solutions = [normal_steps(solution) for solution in drawn[problem["place"]]]
        labels = [float(right) for right in right_solutions(solutions, problem["answer"])]
        counts["solutions"] += len(solutions)
        counts["right"] += int(sum(labels))
        counts["without a box"] += sum(boxed_answer(solution) is None for solution in solutions)
        for first in range(0, len(solutions), 2):
            pair = sorted(range(first, first + 2), key=lambda index: -labels[index])
            counts["differ"] += labels[first] != labels[first + 1]
            row = {"prompt": problem["problem"], "source": "prm800k"}
            row |= dict(zip(("chosen", "rejected"), (solutions[index] for index in pair), strict=True))
            row |= dict(zip(LABEL_KEYS, (labels[index] for index in pair), strict=True))
            yield (problem["place"] * len(solutions) + first) // 2 + 1, row
    notes.append(
        f"{counts['right']} of {counts['solutions']} solutions right, {counts['without a box']} without a boxed "
        f"answer; {counts['differ']} pairs of a right and a wrong one"
    )


def normal_steps(solution: str) -> str:
    """Return a solution with exactly one blank line between its steps, and none around them."""
    return re.sub(r"[^\S\n]*\n\s*\n", "\n\n", solution.strip())


def boxed_answer(solution: str) -> str | None:
    r"""Return what stands in the last `\boxed{...}`, braces inside it included; None without one, or if it stays open.

    Braces that LaTeX prints, `\{` and `\}`, do not count.
    """
    start = solution.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth = start + len("\\boxed{"), 1
    for brace in re.finditer(r"\\.|[{}]", solution[begin:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return solution[begin : begin + brace.start()]
    return None


def right_solutions(solutions: Iterable[str], truth: str) -> list[bool]:
    """Say of each solution whether its boxed answer is the problem's, however it is written.

    Args:
        solutions: texts; one without a boxed answer is wrong.
        truth: the answer, LaTeX without a box.
    """
    from math_verify import parse, verify  # late: it loads a computer algebra system

    # Its limits on time use a signal, which only the main thread has.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    want, known = parse(f"\\boxed{{{truth}}}", parsing_timeout=seconds), {}
    answers = [boxed_answer(solution) for solution in solutions]
    for answer in set(answers) - {None}:
        found = parse(f"\\boxed{{{answer}}}", parsing_timeout=seconds)
        known[answer] = answer.strip() == truth.strip() or verify(want, found, timeout_seconds=seconds)
    return [answer is not None and known[answer] for answer in answers]
