"""Tuning: the same search for every method, on validation pairs whose labels are as noisy as the training's.

It starts with eight trials on two seeds: four learning rates an octave apart times two values of the method's knob, or,
where there is none, eight rates half an octave apart over the same range. Then, until nothing is left to do: the three
best trials are run on four more seeds, because a rate at which some trainings fail looks as good as any on two that did
not; and the neighbours of the best of them are tried, so that no choice lies on the edge of what was looked at.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from icrm_lib import records
from icrm_lib.lab.cells import EVERY_METHOD, TRUTH, TUNING_SEEDS, WEIGHTS, Cell, tuned_as
from icrm_lib.lab.grid import run_grid
from icrm_lib.lab.held_out import VALIDATION
from icrm_lib.methods import Knob
from icrm_lib.profiles import Profile

RATES = tuple(float(f"{1e-3 * 2 ** (step / 2):.2g}") for step in range(-8, 16))  # half octaves, 6e-5 to 0.18
FIRST_RATE, FIRST_TRIALS, MOST_TRIALS = 8, 8, 24
SEARCH_SEEDS, LEADERS = TUNING_SEEDS[:2], 3
Changes = tuple[tuple[str, float], ...]  # (setting, value)


@dataclass(frozen=True)
class Trial:
    """A place in a method's search.

    Attributes:
        rate: index of `RATES`.
        value: index of the ladder of the method's knob; 0 where there is none.
    """

    rate: int
    value: int = 0

    def changes(self, knob: Knob | None) -> Changes:
        """Return the settings tried."""
        rate = (("learning_rate", RATES[self.rate]),)
        return rate if knob is None else (*rate, (knob.setting, knob.ladder[self.value]))

    def neighbours(self, knob: Knob | None) -> list["Trial"]:
        """Return the next trials in every direction that there is."""
        step, values = (1, 1) if knob is None else (2, len(knob.ladder))
        near = [(self.rate - step, self.value), (self.rate + step, self.value)]
        near += [(self.rate, self.value - 1), (self.rate, self.value + 1)]
        return [Trial(r, v) for r, v in near if 0 <= r < len(RATES) and 0 <= v < values]


def knob_of(name: str) -> Knob | None:
    """Return what is tuned beside the learning rate of a method, or of "bt-double"."""
    return EVERY_METHOD[name.partition("-")[0]].knob


def first_trials(knob: Knob | None) -> list[Trial]:
    """Return the trials that every search begins with."""
    if knob is None:
        return [Trial(FIRST_RATE + step) for step in range(FIRST_TRIALS)]
    values = (knob.first, knob.first + 1)
    return [Trial(FIRST_RATE + 2 * step, value) for step in range(FIRST_TRIALS // 2) for value in values]


def cells_of(name: str, trial: Trial, seeds: Iterable[int] = TUNING_SEEDS) -> list[Cell]:
    """Return the cells of a trial, one a tuning seed; they see the validation split alone."""
    method, _, base = name.partition("-")
    changes = trial.changes(knob_of(name))
    return [Cell(method, seed, base=base or "base", changes=changes) for seed in seeds]


def tuned_names() -> list[str]:
    """Return the names of everything that is tuned."""
    names = [name for name, method in EVERY_METHOD.items() if not method.tuned_as and name not in (*TRUTH, WEIGHTS)]
    return [*names, "bt-double"]


def tune(
    profile: Profile,
    cells: Iterable[Cell],
    *,
    folder: Path | None = None,
    workers: int | None = None,
    engine: str = "loky",
    gpus: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Search the settings of what some cells need tuned, by accuracy on the noisy labels of validation pairs.

    Args:
        profile: of the grid.
        cells: whose methods are tuned.
        folder, workers, engine, gpus: see `run_grid`.

    Returns:
        by `tuned_as`, the chosen settings; ties go to the earlier trial. `tuning.json` in the folder has more.
    """
    wanted = {tuned_as(cell) for cell in cells}
    searches = {name: _Search(name) for name in tuned_names() if name in wanted}
    paths: dict[Cell, Path] = {}
    while waiting := [cell for search in searches.values() for cell in search.cells() if cell not in paths]:
        places = {"folder": folder, "workers": workers, "engine": engine, "gpus": gpus}
        paths |= run_grid(profile, waiting, tuned={}, **places)
        for search in searches.values():
            search.go_on(paths)
    if searches:
        found = {name: search.report(paths) for name, search in searches.items()}
        file = next(iter(paths.values())).parent / "tuning.json"
        known = records.read_json(file) if file.is_file() else {}
        records.write_json(file, known | found)
    return {name: dict(search.best(paths).changes(search.knob)) for name, search in searches.items()}


class _Search:
    """The search of one method.

    Args:
        name: of `tuned_names`.
    """

    def __init__(self, name: str):
        self.name, self.knob = name, knob_of(name)
        self.trials, self.led = first_trials(self.knob), set[Trial]()  # `led`: run on all seeds

    def cells(self) -> list[Cell]:
        seeds = {trial: TUNING_SEEDS if trial in self.led else SEARCH_SEEDS for trial in self.trials}
        return [cell for trial in self.trials for cell in cells_of(self.name, trial, seeds[trial])]

    def accuracy(self, trial: Trial, paths: dict[Cell, Path]) -> float:
        """Over the seeds that the trial was run on."""
        cells = [cell for cell in cells_of(self.name, trial) if cell in paths]
        counts = [records.read_json(paths[cell])["metrics"]["accuracy"][VALIDATION] for cell in cells]
        return sum(sum(count["right"]) for count in counts) / sum(sum(count["count"]) for count in counts)

    def leaders(self, paths: dict[Cell, Path]) -> list[Trial]:
        """The best trials, the best first; ties keep their order."""
        return sorted(self.trials, key=lambda trial: self.accuracy(trial, paths), reverse=True)[:LEADERS]

    def best(self, paths: dict[Cell, Path]) -> Trial:
        return self.leaders(paths)[0]

    def go_on(self, paths: dict[Cell, Path]) -> None:
        """Let the leaders be run on all seeds; where they were, the neighbours of the best be tried."""
        leaders = self.leaders(paths)
        if self.led.issuperset(leaders):
            fresh = [trial for trial in leaders[0].neighbours(self.knob) if trial not in self.trials]
            self.trials += fresh[: MOST_TRIALS - len(self.trials)]
        self.led.update(leaders)

    def report(self, paths: dict[Cell, Path]) -> dict:
        """What the search looked at: the choice, whether all its neighbours were tried, and every trial."""
        best = self.best(paths)
        near = best.neighbours(self.knob)
        on_end = self.knob is not None and best.value in (0, len(self.knob.ladder) - 1)
        return {
            "chosen": dict(best.changes(self.knob)),
            "inside": set(near) <= set(self.trials) and not on_end and best.rate not in (0, len(RATES) - 1),
            "trials": [
                {
                    **dict(trial.changes(self.knob)),
                    "seeds": sum(cell in paths for cell in cells_of(self.name, trial)),
                    "accuracy": round(self.accuracy(trial, paths), 6),
                }
                for trial in self.trials
            ],
        }
