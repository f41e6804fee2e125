"""How cost grows: a training step over length, batch and vocabulary; data preparation and generator pass over pairs.

    python bench/growth.py [--hidden 128 --layers 2 --vocabulary 8192 --pairs 4 --length 256 --steps 3]

From the sizes given one at a time is varied. Every point has a process of its own, so that its peak memory is its own:
the highest less what was held before the first step (see `common.hold`); its time is the median of a few steps, or of
one pass. Preparation reads a JSONL file and tokenises it (short texts of the testbed, repeated); the pass asks a tiny
generator about short rows. Prints one JSON record, writes it to `results/bench/growth.json`, and draws
`results/bench/growth.png`.
"""

import argparse
import json
import tempfile
from pathlib import Path

import common
import numpy as np
from datasets import disable_caching
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from icrm_lib import figures, runtime
from icrm_lib.generator import cached_logprobs, model_scorer
from icrm_lib.preferences import load_preferences, tokenize_pairs
from icrm_lib.testbed import Language
from icrm_lib.tokenization import prepare_tokenizer

KINDS = ("bt", "icrm", "icrm + sft")
SIZES = {
    "length": (64, 128, 256, 512, 1024),
    "pairs": (1, 2, 4, 8, 16, 32),
    "vocabulary": (2000, 8000, 32000, 128_000),
}
NAMES = {
    "length": "tokens a row",
    "pairs": "pairs a batch",
    "vocabulary": "words of the vocabulary",
    "data": "pairs of the data set",
}
LOOKS = {  # colour, line style, marker: one of them is enough to tell them apart
    "bt": ("bt", figures.LINESTYLES["bt"], "s"),
    "icrm": ("icrm", figures.LINESTYLES["icrm_uniform"], "D"),
    "icrm + sft": ("icrm", "-", "o"),
    "preparation": ("neutral", figures.LINESTYLES["gold"], "^"),
    "generator pass": ("chosen", "-", "v"),
}


def step_cost(kind: str, args: argparse.Namespace) -> tuple[float, float]:
    """Median seconds of a training step, without the first, and peak memory in MiB."""
    with tempfile.TemporaryDirectory() as base:
        common.small_llama(args.hidden, args.layers, args.vocabulary, args.length).save_pretrained(base)
        data = common.random_pairs(args.pairs * (1 + args.steps), args.length, args.vocabulary)
        step = common.trainer_step(common.make_trainer(kind, base, data, args.pairs))
    held = common.hold()
    return common.step_seconds(step, 1, args.steps), common.peak(held)


def preparation_cost(count: int) -> tuple[float, float]:
    """Seconds and peak memory from a JSONL file of so many pairs to token ids."""
    disable_caching()  # or a second run would find the first one's answer
    language = Language()
    tokenizer = prepare_tokenizer(language.tokenizer)
    rows = language.preference_pairs(min(count, 500), np.random.default_rng(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for index in range(count):
                row = rows[index % len(rows)]
                line = {"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}
                file.write(json.dumps(line) + "\n")
        return common.seconds_and_peak(lambda: tokenize_pairs(load_preferences(path)[0], tokenizer, max_length=256))


def pass_cost(count: int) -> tuple[float, float]:
    """Seconds and peak memory of a tiny generator's pass over so many pairs of short rows."""
    data = common.unscored(common.random_pairs(count, 32, 64, shortest=16))
    model = common.small_llama(16, 1, 64, 32).eval()
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder)
        return common.seconds_and_peak(lambda: cached_logprobs(data, lambda: model_scorer(model, 0), scores, {}))


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[list[float]]]]:
    """Return {axis: {what: [[size, seconds, MiB], ...]}}."""
    found: dict[str, dict[str, list]] = {}
    for axis, sizes in SIZES.items():
        wanted = [size for size in sizes if size <= getattr(args, f"most_{axis}")]
        for kind in KINDS:
            costs = [
                common.in_own_process(step_cost, kind, argparse.Namespace(**vars(args) | {axis: s})) for s in wanted
            ]
            found.setdefault(axis, {})[kind] = _points(wanted, costs)
    counts = [count for count in (100, 1000, 10_000, 100_000) if args.most_data / 100 <= count <= args.most_data]
    for what, cost in (("preparation", preparation_cost), ("generator pass", pass_cost)):
        costs = [common.in_own_process(cost, count) for count in counts]
        found.setdefault("data", {})[what] = _points(counts, costs)
    return found


def _points(sizes: list[int], costs: list[tuple[float, float]]) -> list[list[float]]:
    return [[size, round(s, 4), round(mib, 1)] for size, (s, mib) in zip(sizes, costs, strict=True)]


def exponents(points: dict[str, list[list[float]]]) -> dict[str, list[float]]:
    """Return e of cost ~ size^e over the last two sizes, for time and for memory: 1 is in proportion."""
    last = {what: np.log2(np.array(values)[-2:].clip(min=1e-9)) for what, values in points.items() if len(values) > 1}
    rises = {what: (ends[1] - ends[0])[1:] / (ends[1] - ends[0])[0] for what, ends in last.items()}
    return {what: [round(float(rise), 2) for rise in both] for what, both in rises.items()}


def draw(found: dict[str, dict[str, list[list[float]]]], path: Path) -> None:
    """Draw time above and memory below, one column an axis, both scales logarithmic."""
    figures.use_style()
    figure, axes = plt.subplots(2, len(found), figsize=(10, 4.6), sharex="col")
    for column, (axis, lines) in enumerate(found.items()):
        for row, unit in enumerate(("seconds", "MiB")):
            _panel(axes[row, column], lines, row + 1)
            axes[row, column].set_ylabel(unit if column == 0 else "")
        axes[0, column].set_title("a pass" if axis == "data" else "a step")
        axes[1, column].set_xlabel(NAMES[axis])
    for column in (0, len(found) - 1):  # the first three columns share their lines
        axes[0, column].legend(fontsize=7.5, handlelength=3.2)
    figure.savefig(path)
    plt.close(figure)


def _panel(ax: Axes, lines: dict[str, list[list[float]]], of: int) -> None:
    for what, points in lines.items():
        color, style, marker = LOOKS[what]
        x, y = np.array(points)[:, (0, of)].T
        ax.plot(x, y.clip(min=1e-3), color=figures.COLORS[color], ls=style, marker=marker, label=what, lw=1.4)
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(x, [f"{v / 1000:g}k" if v % 1000 == 0 else f"{v:g}" for v in x], fontsize=8)
    ax.set_xticks([], minor=True)


def main() -> None:
    sizes = {"hidden": 128, "layers": 2, "vocabulary": 8192, "pairs": 4, "length": 256, "steps": 3}
    most = {f"most_{axis}": values[-1] for axis, values in SIZES.items()}
    args = common.read_sizes(__doc__, **sizes, **most, most_data=100_000)
    found = measure(args)
    growth = {axis: exponents(points) for axis, points in found.items()}
    common.finish("growth", args, {"size_seconds_mib": found, "exponent_of_seconds_and_mib": growth})
    draw(found, runtime.project_root() / "results" / "bench" / "growth.png")


if __name__ == "__main__":
    main()
