"""One table of what the other scripts measured, and whether it meets its goal.

    python bench/table.py

Reads `results/bench/*.json`. Where a script has not been run, its rows say so. Exits 0 whatever the numbers are.
"""

from dataclasses import dataclass
from typing import Any

from icrm_lib import records, runtime


@dataclass(frozen=True)
class Row:
    """One measured number.

    Args:
        what: the ratio in words.
        record: the script's name.
        keys: where the number lies in the record's metrics.
        least, most: its goal; no goal when both are None.
    """

    what: str
    record: str
    keys: tuple[str, ...]
    least: float | None = None
    most: float | None = None

    def goal(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.most is None else f"<= {self.most:g}"

    def verdict(self, value: float) -> str:
        if not self.goal():
            return ""
        low, high = self.least is None or value >= self.least, self.most is None or value <= self.most
        return "met" if low and high else "missed"


ROWS = (
    Row("ICRM's step, time / Bradley-Terry's", "training_step", ("time_to", "bt", "icrm"), most=1.05),
    Row("ICRM's step, memory / Bradley-Terry's", "training_step", ("memory_to", "bt", "icrm"), most=1.05),
    Row("with text term, time / Bradley-Terry's", "training_step", ("time_to", "bt", "icrm + sft"), most=1.6),
    Row("reference's step, time / ICRM's with text", "training_step", ("time_to", "icrm + sft", "reference"), least=5),
    Row("reference's, memory / ICRM's with text", "training_step", ("memory_to", "icrm + sft", "reference"), least=3),
    Row("lean reference, time / ICRM's with text", "training_step", ("time_to", "icrm + sft", "lean reference")),
    Row("lean reference, memory / ICRM's with text", "training_step", ("memory_to", "icrm + sft", "lean reference")),
    Row("generator's pass, tokens/s / a bare one's", "generator_cache", ("speed", "speed_to_bare"), least=0.9),
    Row("pass over 10 times the pairs, time", "generator_cache", ("growth", "time_of_10_times"), least=9, most=11),
    Row("pass over 10 times the pairs, memory", "generator_cache", ("growth", "memory_of_10_times"), most=1.1),
    Row("cache, bytes a token, float32", "generator_cache", ("bytes_per_response_token", "float32"), most=4),
    Row("cache, bytes a token, float16", "generator_cache", ("bytes_per_response_token", "float16"), most=4),
    Row("padding, log-normal", "padding", ("share_of_padding", "log-normal", "padding_free"), most=0.05),
    Row("padding, pandalm", "padding", ("share_of_padding", "pandalm_human", "padding_free"), most=0.05),
    Row("padding, alpaca_eval", "padding", ("share_of_padding", "alpacaeval_gpt4_train", "padding_free"), most=0.05),
    Row("padding-free step, time / padded", "padding", ("step", "padding_free_to_padded")),
    Row("plan's peak memory / measured", "plan_memory", ("ratio",), least=0.95, most=1.05),
    Row("scoring, times faster than a pipeline", "scoring", ("times_faster_median_quartiles",), least=3),
)
HEAD = ("ratio", "measured", "goal", "")


def cells(row: Row) -> tuple[str, str, str, str]:
    """Return one line of the table; a number, or [median, lower, upper quartile], is found in the record or not."""
    value = _found(row)
    if value is None:
        return row.what, "", row.goal(), "not measured"
    median, *quartiles = value if isinstance(value, list) else [value]
    measured = f"{median:.3g}" + (f" [{quartiles[0]:.3g}, {quartiles[1]:.3g}]" if quartiles else "")
    return row.what, measured, row.goal(), row.verdict(median)


def _found(row: Row) -> Any:
    path = runtime.project_root() / "results" / "bench" / f"{row.record}.json"
    value = records.read_json(path)["metrics"] if path.is_file() else {}
    for key in row.keys:
        value = value.get(key, {})
    return None if value == {} else value


def main() -> None:
    lines = [HEAD, *map(cells, ROWS)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
