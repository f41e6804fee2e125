"""RewardBench (arXiv 2403.13787) and the prior sets of its leaderboard: items, and the official numbers."""

from pathlib import Path

import numpy as np
import pandas as pd

from icrm_lib.benchmarks.scores import all_scores, flagged, missing_names, numbered
from icrm_lib.benchmarks.source import Benchmark, BenchmarkItems, Row, load

# Section -> subset -> weight. The weights are the official ones, not the rows of the data: math-prm has 447 rows and
# counts 984, as much as the six languages together. Until September 2024 the two xstest weights were swapped.
REWARDBENCH_WEIGHTS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984}
    | {f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
}
REWARDBENCH = Benchmark(
    loader="load_rewardbench",
    hub="allenai/reward-bench",
    revision="168d848cdbbea9764fae4a544dc9ca1e6cca4931",
    files=("filtered",),  # split "raw" is the set before its manual check and no benchmark
    rows={subset: n for weights in REWARDBENCH_WEIGHTS.values() for subset, n in weights.items()} | {"math-prm": 447},
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
PRIOR_SETS = tuple(PRIOR.rows)
LEADERBOARD_WEIGHTS = (2, 2, 2, 2, 1)  # the four sections, then the prior sets


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

    def read(row: Row) -> dict:
        return {"subset": row.name("subset", REWARDBENCH.rows), "id": row.values.get("id")} | row.pair()

    return load(REWARDBENCH, source, revision, read)


def load_prior_sets(source: str | Path | None = None, *, revision: str | None = None) -> BenchmarkItems:
    """Read the four prior preference sets of the RewardBench leaderboard, as further rows for `benchmarks.rewardbench`:

        pd.concat([score_items(load_rewardbench(), score), score_items(load_prior_sets(), score)])

    Columns read: `prompt` (list of messages, or text), `chosen` and `rejected` (text); `id` if there is one. The subset
    is the file's name; a column `subset` of these files is another one and not read.

    Args, Returns, Raises: as `load_rewardbench`; 17154 items officially. A folder holds one file a set, a single file
    is named after its set (`shp-00000-of-00001.parquet`, `shp.jsonl`).
    """

    def read(row: Row) -> dict:
        if row.file not in PRIOR.rows:
            row.fail(f"unknown set {row.file!r}", f"name the file after its set: {', '.join(PRIOR.rows)}")
        return {"subset": row.file, "id": row.values.get("id")} | row.pair()

    return load(PRIOR, source, revision, read)


def rewardbench(frame: pd.DataFrame, *, partial: bool = False) -> dict[str, float | bool]:
    """Score RewardBench (arXiv 2403.13787) as its leaderboard does.

    A pair counts 1 when the chosen response scores strictly higher, else 0 (a tie is no win). A section is the mean of
    its subsets' accuracies under the official weights, whatever the number of rows in the frame.

    Args:
        frame: one row a pair: `subset` (official name), `chosen` and `rejected` (finite scores). Rows of the four
            `PRIOR_SETS` are optional, all or none.
        partial: accept missing subsets, and report only the sections whose subsets are all there.

    Returns:
        `Chat`, `Chat Hard`, `Safety`, `Reasoning` and `average`, their plain mean, each in [0, 1]. With prior sets also
        `Prior Sets`, their plain mean, and `leaderboard`, the mean weighted 2, 2, 2, 2, 1. When something is missing
        (`partial` only): `"partial": True`, the complete sections, and no mean over sections that are not all there.

    Raises:
        ValueError: a missing column or subset, an unknown subset, a score that is not finite, or no complete section.
    """
    subsets = list(REWARDBENCH.rows)
    frame = numbered(frame, "subset", ["chosen", "rejected"])
    wanted = [*subsets, *PRIOR_SETS] if frame["subset"].isin(PRIOR_SETS).any() else subsets
    missing = missing_names(frame["subset"], wanted, [*subsets, *PRIOR_SETS], partial)
    wins = all_scores(frame, "chosen", "subset", each=1) > all_scores(frame, "rejected", "subset", each=1)
    accuracy = wins.groupby(frame["subset"]).mean()
    sections = {
        section: float(np.average(accuracy[list(weights)], weights=list(weights.values())))
        for section, weights in REWARDBENCH_WEIGHTS.items()
        if not missing & weights.keys()
    }
    result = dict(sections)
    whole = len(sections) == len(REWARDBENCH_WEIGHTS)
    if whole:
        result["average"] = float(np.mean(list(sections.values())))
    if len(wanted) > len(subsets) and not missing & set(PRIOR_SETS):
        result["Prior Sets"] = float(accuracy[list(PRIOR_SETS)].mean())
        if whole:
            every = [*sections.values(), result["Prior Sets"]]
            result["leaderboard"] = float(np.average(every, weights=LEADERBOARD_WEIGHTS))
    return flagged(result, missing)
