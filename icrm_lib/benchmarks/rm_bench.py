"""RM-Bench (arXiv 2410.16184): items, and the official numbers."""

from pathlib import Path

import numpy as np
import pandas as pd

from icrm_lib.benchmarks.scores import all_scores, flagged, missing_names, numbered
from icrm_lib.benchmarks.source import Benchmark, BenchmarkItems, Row, load

RMBENCH = Benchmark(
    loader="load_rmbench",
    hub="THU-KEG/RM-Bench",
    revision="5e094adbde982855284918147e84a169f7282a2a",
    files=("total_dataset",),
    rows={"chat": 129, "code": 228, "math": 529, "safety-refuse": 284, "safety-response": 157},
    sha256={},
)
RMBENCH_DOMAINS = {
    "chat": ("chat",),
    "code": ("code",),
    "math": ("math",),
    "safety": ("safety-refuse", "safety-response"),
}


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

    def read(row: Row) -> dict:
        if "domain" not in row.values:
            row.fail("no 'domain'", "only total_dataset.json has it, the files of one domain do not: load that file")
        sides = {side: row.conversations(row.texts(side, 3)) for side in ("chosen", "rejected")}
        return {"domain": row.name("domain", RMBENCH.rows), "id": row.values.get("id")} | sides

    return load(RMBENCH, source, revision, read)


def rmbench(frame: pd.DataFrame, *, partial: bool = False) -> dict[str, dict[str, float] | float | bool]:
    """Score RM-Bench (arXiv 2410.16184).

    Each item has three chosen and three rejected responses, in the order concise, detailed, detailed with markdown. Of
    the nine strict comparisons, `hard` are the three whose chosen response is the plainer one, `normal` the three of
    one style, `easy` the three whose rejected response is the plainer one.

    Args:
        frame: one row an item: `domain` (chat, code, math, safety-refuse or safety-response), `chosen` and `rejected`
            (lists of 3 finite scores in the order above).
        partial: accept missing domains, and report only those that are complete.

    Returns:
        for `chat`, `code`, `math` and `safety` (its two parts pooled by item, not averaged) a dict of `easy`, `normal`,
        `hard` and `average`, the mean of the three; and `easy`, `normal`, `hard` and `average` once more over the four
        domains, plain means. All in [0, 1]. When a part is missing (`partial` only): `"partial": True`, the complete
        domains, and no mean over domains.

    Raises:
        ValueError: a missing column or domain, an unknown domain, a score that is not finite, or not three scores.
    """
    names = list(RMBENCH.rows)
    frame = numbered(frame, "domain", ["chosen", "rejected"])
    missing = missing_names(frame["domain"], names, names, partial)
    chosen = all_scores(frame, "chosen", "domain", each=3).to_numpy().reshape(-1, 3, 1)
    rejected = all_scores(frame, "rejected", "domain", each=3).to_numpy().reshape(-1, 1, 3)
    wins = chosen > rejected  # (items, 3, 3): style of the chosen response, style of the rejected one
    chosen_style, rejected_style = np.indices((3, 3))
    levels = {
        "easy": wins[:, chosen_style > rejected_style].mean(axis=1),
        "normal": wins[:, chosen_style == rejected_style].mean(axis=1),
        "hard": wins[:, chosen_style < rejected_style].mean(axis=1),
    }
    domain = frame["domain"].map({name: domain for domain, parts in RMBENCH_DOMAINS.items() for name in parts})
    table = pd.DataFrame(levels).groupby(domain).mean()
    table["average"] = table.mean(axis=1)
    complete = [domain for domain, parts in RMBENCH_DOMAINS.items() if not missing & set(parts)]
    result = table.loc[complete].to_dict(orient="index")
    return flagged(result if missing else result | table.mean().to_dict(), missing)
