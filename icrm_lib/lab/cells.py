"""The cells of the evidence: what is trained and measured, its name, and what is tuned for it.

Tables and figures read names and labels here, so nothing below loads torch.
"""

from dataclasses import replace

from pydantic import ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from icrm_lib import runtime
from icrm_lib.methods import METHODS, Knob, Method

# Raised by hand when code changes what a cell records: older records then count as not there.
VERSION = 2

ENSEMBLE_SIZE = 3
ROLLOUTS = 4  # behind each noisy clause label: the share of them that reach the top score
# No model is trained for these: the exact prefix values and the gold score so far as rewards, and the weights that
# every generator gives the training tokens, compared with the exact probabilities.
TRUTH = ("true_values", "true_scores")
WEIGHTS = "weights"
# Methods beyond `METHODS`, each with the settings of one of them: the cell departs from plain training.
_ENSEMBLE = replace(METHODS["bt"], study="objectives", tuned_as="bt")
COMPOSED: dict[str, Method] = {
    "ensemble_mean": replace(_ENSEMBLE, label=f"Ensemble of {ENSEMBLE_SIZE}, mean"),
    "ensemble_worst": replace(_ENSEMBLE, label=f"Ensemble of {ENSEMBLE_SIZE}, worst"),
    "prm_noisy": replace(METHODS["prm"], label="Process labels, noisy", tuned_as="prm"),
    "prm_noisy_icrm": replace(METHODS["prm_icrm"], label="Process labels, noisy, + ICRM", tuned_as="prm_icrm"),
    # Bradley-Terry's optimiser settings; the loss is DPO's
    "implicit": replace(
        METHODS["bt"],
        label="DPO, implicit rewards",
        study="objectives",
        knob=Knob("text_beta", (0.02, 0.1, 0.5, 2.0), 1),
    ),
    "true_values": replace(METHODS["bt"], label="exact values"),
    "true_scores": replace(METHODS["bt"], label="gold labels (ceiling)"),
    WEIGHTS: replace(METHODS["bt"], label="weights of the generator", study="generators"),
}
EVERY_METHOD = METHODS | COMPOSED

MAIN = ("bt", "grm_sft", "icrm", "icrm_uniform", "icrm_shuffled")
LAMBDAS = (0.1, 0.3, 0.5, 0.7, 0.9)
GENERATORS = ("exact", "temperature 0.5", "temperature 2", "small", "under-trained", "another language", "unigram")
SIZES = (100, 400, 1600, 6400)
# Learning rates for all the main methods alike: does a comparison hang on the choice?
NEAR_BY = (1e-3, 2e-3, 4e-3)
ON_POLICY = ("bt", "icrm", "true_scores")  # whose policies are also trained by GRPO
# So many that two equal methods are found equal within `report.cells.MARGINS` more often than not (see
# `report.design`).
MAIN_SEEDS, SEEDS, FEW_SEEDS = range(16), range(6), range(5)
TUNING_SEEDS = tuple(range(100, 106))  # their training pairs and models are used for nothing else
PLAIN = {"generator": "fitted", "data": "plain", "base": "base"}
KNOWN = {
    "method": list(EVERY_METHOD),
    "generator": [PLAIN["generator"], *GENERATORS],
    "data": [PLAIN["data"], "confounded"],
    "base": [PLAIN["base"], "double"],
}


@dataclass(frozen=True)
class Cell:
    """One model to train and measure.

    Attributes:
        method: of `EVERY_METHOD`.
        seed: of the training pairs, the generator and the model, so that methods of one seed are paired.
        generator: "fitted", or one of `GENERATORS`. "another language" has other tastes in verbs and a quality that
            does not persist; "unigram" knows how frequent each token is and nothing of what precedes it.
        data: "plain", or "confounded" (in training the chosen response tends to be the longer one).
        pairs: training pairs; 0 for the profile's number.
        base: "base", or "double" (about twice the parameters).
        changes: settings that differ from the tuned ones, as (name, value).

    Raises:
        ValueError: an unknown name; the message has the nearest.
    """

    method: str
    seed: int
    generator: str = PLAIN["generator"]
    data: str = PLAIN["data"]
    pairs: int = 0
    base: str = PLAIN["base"]
    changes: tuple[tuple[str, float], ...] = ()

    @field_validator(*KNOWN)
    @classmethod
    def _is_known(cls, value: str, field: ValidationInfo) -> str:
        known = KNOWN[field.field_name]
        if value not in known:
            raise ValueError(f"unknown {field.field_name} {value!r}; {runtime.nearest(value, known)}")
        return value

    @property
    def name(self) -> str:
        """File name without suffix; unlike for unlike cells. ValueError where it would lead to another folder."""
        parts = [self.method]
        parts += [getattr(self, part).replace(" ", "_") for part in PLAIN if getattr(self, part) != PLAIN[part]]
        parts += [f"{self.pairs}_pairs"] if self.pairs else []
        parts += [f"{key}_{value:g}" for key, value in self.changes]
        return runtime.plain_name("-".join([*parts, f"seed_{self.seed}"]))

    @property
    def is_trial(self) -> bool:
        """Whether it is there for tuning, and so may see the validation pairs alone."""
        return self.seed in TUNING_SEEDS


def members(study: str) -> list[str]:
    """Return the methods whose declaration names a study."""
    return [name for name, method in EVERY_METHOD.items() if method.study == study]


def studies() -> dict[str, list[Cell]]:
    """Return the cells of every study of the evidence, by name; a cell may belong to several."""
    sizes = [Cell(m, s, pairs=n if n != 400 else 0) for n in SIZES for m in MAIN[:4] for s in SEEDS]
    lambdas = [(m, (("consistency_weight", value),)) for m in ("icrm", "icrm_uniform") for value in LAMBDAS]
    return {
        "main": [*(Cell(m, 0) for m in TRUTH), *(Cell(method, seed) for seed in MAIN_SEEDS for method in MAIN)],
        "objectives": [Cell(method, seed) for method in members("objectives") for seed in SEEDS],
        "weightings": [Cell(method, seed) for method in members("weightings") for seed in SEEDS],
        "forms": [Cell(method, seed) for method in members("forms") for seed in SEEDS],
        "generators": [
            *(Cell(WEIGHTS, 0, generator=name) for name in ("fitted", *GENERATORS)),
            *(Cell("icrm", seed, generator=name) for name in GENERATORS for seed in SEEDS),
        ],
        "lambda": [Cell(method, s, changes=changes) for method, changes in lambdas for s in SEEDS],
        "confounded": [Cell(method, seed, data="confounded") for method in MAIN[:4] for seed in SEEDS],
        "compute": [Cell("bt", seed, base="double") for seed in SEEDS],
        "sensitivity": [
            Cell(m, s, changes=(("learning_rate", rate),)) for rate in NEAR_BY for m in MAIN[:4] for s in FEW_SEEDS
        ],
        "sizes": [cell for cell in sizes if cell.pairs < max(SIZES) or cell.seed in FEW_SEEDS],
        "best_of_n": [Cell("true_scores", 0), *(Cell(m, s) for s in MAIN_SEEDS for m in (*MAIN, "implicit"))],
        "policy": [Cell(m, s) for s in SEEDS for m in ("bt", "grm_sft", "icrm", "icrm_uniform", "true_scores")],
    }


def purpose_of(study: str) -> str:
    """Return what a study measures of its models (see `lab.cell`), which is also where its records lie."""
    return study if study in ("best_of_n", "policy") else "evidence"


def tuned_as(cell: Cell) -> str:
    """Return whose tuned settings a cell takes: a method's, or "bt-double" for the larger model."""
    name = EVERY_METHOD[cell.method].tuned_as or cell.method
    return f"{name}-double" if cell.base == "double" else name
