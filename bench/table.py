"""One table of what the other scripts measured, and whether it meets its goal, in Markdown.

    python bench/table.py [--write]

Reads `results/bench/*.json`; where a script has not been run, its rows say "not measured". Prints the table, and with
`--write` puts it into `bench/README.md`, between the two comments there. Exits 0 whatever the numbers are.
"""

import argparse
from dataclasses import dataclass

from icrm_lib import records, runtime

BEGIN, END = "<!-- table -->", "<!-- end of table -->"
HEAD = ("ratio", "measured, quartiles over turns", "goal", "")


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        what: the ratio in words.
        record: the script's name.
        keys: where the number lies in the record's metrics, with dots between.
        least, most: its goal; no goal when both are None.
    """

    what: str
    record: str
    keys: str
    least: float | None = None
    most: float | None = None

    def cells(self) -> tuple[str, str, str, str]:
        """Return its line of the table; a number, or [median, lower, upper quartile], is in the record or not."""
        goal, value = self._goal(), self._found()
        if value is None:
            return self.what, "", goal, "not measured"
        median, *quartiles = value if isinstance(value, list) else [value]
        measured = f"{median:.3g}" + (f" [{quartiles[0]:.3g}, {quartiles[1]:.3g}]" if quartiles else "")
        met = (self.least is None or median >= self.least) and (self.most is None or median <= self.most)
        return self.what, measured, goal, ("met" if met else "missed") if goal else ""

    def _goal(self) -> str:
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        if self.least is not None:
            return f"≥ {self.least:g}"
        return "" if self.most is None else f"≤ {self.most:g}"

    def _found(self) -> float | list[float] | None:
        path = runtime.project_root() / "results" / "bench" / f"{self.record}.json"
        value = records.read_json(path)["metrics"] if path.is_file() else {}
        for key in self.keys.split("."):
            value = value.get(key, {})
        return None if value == {} else value


ROWS = (
    Row("ICRM's step, time / Bradley-Terry's", "training_step", "time_to.bt.icrm", most=1.05),
    Row("ICRM's step, memory / Bradley-Terry's", "training_step", "memory_to.bt.icrm", most=1.05),
    Row("with text term, time / Bradley-Terry's", "training_step", "time_to.bt.icrm + sft", most=1.6),
    Row("reference's step, time / ICRM's with text", "training_step", "time_to.icrm + sft.reference", least=5),
    Row("reference's, memory / ICRM's with text", "training_step", "memory_to.icrm + sft.reference", least=3),
    Row("lean reference, time / ICRM's with text", "training_step", "time_to.icrm + sft.lean reference"),
    Row("lean reference, memory / ICRM's with text", "training_step", "memory_to.icrm + sft.lean reference"),
    Row("generator's pass, tokens/s / a bare one's", "generator_cache", "speed.speed_to_bare", least=0.9),
    Row("pass over 10 times the pairs, time", "generator_cache", "growth.time_of_10_times", least=9, most=11),
    Row("pass over 10 times the pairs, memory", "generator_cache", "growth.memory_of_10_times", most=1.1),
    Row("cache, bytes a token, float32", "generator_cache", "bytes_per_response_token.float32", most=4),
    Row("cache, bytes a token, float16", "generator_cache", "bytes_per_response_token.float16", most=4),
    Row("padding, log-normal", "padding", "share_of_padding.log-normal.padding_free", most=0.05),
    Row("padding, pandalm", "padding", "share_of_padding.pandalm_human.padding_free", most=0.05),
    Row("padding, alpaca_eval", "padding", "share_of_padding.alpacaeval_gpt4_train.padding_free", most=0.05),
    Row("padding-free step, time / padded", "padding", "step.padding_free_to_padded"),
    Row("shared prompts, ICRM's step / TRL's Bradley-Terry's", "prefix_sharing", "time_to_bt.icrm, shared", most=0.5),
    Row("shared prompts, with text term / the same", "prefix_sharing", "time_to_bt.icrm + sft, shared", most=0.75),
    Row("shared prompts, memory / TRL's", "prefix_sharing", "memory_to_bt.icrm, shared", most=1),
    Row("step from kept lower layers (8 of 10) / all", "frozen_layers", "time_of_kept_to.all_layers", most=0.4),
    Row("the same / frozen, but run each time", "frozen_layers", "time_of_kept_to.frozen", most=0.6),
    Row("plan's peak memory / measured", "plan_memory", "ratio", least=0.95, most=1.05),
    Row("scoring, times faster than a pipeline", "scoring", "times_faster_median_quartiles", least=6),
)


def table() -> str:
    """Return the table in Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *(row.cells() for row in ROWS)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(text: str) -> None:
    """Put a table into `bench/README.md`, in place of the one between `BEGIN` and `END`."""
    path = runtime.project_root() / "bench" / "README.md"
    before, rest = path.read_text(encoding="utf-8").split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the table into bench/README.md, too")
    text = table()
    print(text)
    if parser.parse_args().write:
        write(text)


if __name__ == "__main__":
    main()
