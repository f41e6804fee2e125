"""One language of the tabular stage: its controls, tables trained with every weighting, and what they are worth."""

from dataclasses import asdict, dataclass

import numpy as np

from icrm_lib.phase.controls import known_controls, measurable_controls
from icrm_lib.phase.measured import exact_rewards, measure
from icrm_lib.phase.responses import Responses, draw_responses
from icrm_lib.phase.tabular import WEIGHTINGS, Batch, Weights, fit_table
from icrm_lib.phase.theory import compare_shift, first_order_shift
from icrm_lib.testbed import Language

REGIMES = ("few", "many")


@dataclass(frozen=True)
class Regime:
    """Tables of one size of training set; every seed has pairs of its own.

    Attributes:
        pairs: to train on.
        seeds: how many tables a weighting.
        steps: of Adam.
        batch_size: pairs a step.
        weightings: that tables are trained with.
    """

    pairs: int
    seeds: int
    steps: int
    batch_size: int
    weightings: tuple[Weights, ...] = WEIGHTINGS


@dataclass(frozen=True)
class Sizes:
    """How much of a language is drawn, and how tables are trained.

    Attributes:
        few: about as many pairs as the small neural regime has.
        many: as many as leave little of the noise of a finite sample in tables.
        held_out: pairs to measure on.
        consistency_weight: lambda.
        seed: of all draws.
    """

    few: Regime = Regime(pairs=400, seeds=5, steps=100, batch_size=200)
    many: Regime = Regime(pairs=1200, seeds=3, steps=100, batch_size=400, weightings=("probability", "uniform"))
    held_out: int = 250
    consistency_weight: float = 0.6
    seed: int = 0

    def regime(self, name: str) -> Regime:
        """Return "few" or "many"."""
        return {"few": self.few, "many": self.many}[name]


def study_config(language: Language, sizes: Sizes) -> dict:
    """Return all that decides a language's numbers, beside the code, as plain values."""
    return {"language": language.config(), "sizes": asdict(sizes)}


def study_language(language: Language, sizes: Sizes) -> dict:
    """Draw pairs of a language, measure its controls, train tables and measure them on held-out pairs.

    Args:
        language: writer and generator.
        sizes: of the study.

    Returns:
        `known`, `measurable`: see `controls`; `exact`: measures of P(top score), the expected and the running score as
        rewards; `few`, `many`: by weighting and measure, one number a seed; `theory`, `theory_of_states`: see
        `theory.compare_shift`, of "many", one number a seed; `states`: how many grammar states occur.
    """
    most = max(sizes.few.pairs * sizes.few.seeds, sizes.many.pairs * sizes.many.seeds)
    rng = np.random.default_rng([sizes.seed, 0])
    responses, n_states = draw_responses(language, most + sizes.held_out, rng, expectations=True)
    train, held_out = responses.of_pairs(0, most), responses.of_pairs(most, most + sizes.held_out)
    tables = {name: _tables(train, n_states, sizes, sizes.regime(name)) for name in REGIMES}
    measured = {
        name: {w: _collected([measure(t[held_out.states], held_out) for t in each]) for w, each in of.items()}
        for name, of in tables.items()
    }
    return {
        "known": known_controls(train),
        "measurable": measurable_controls(train),
        "exact": _measured_truth(held_out),
        **measured,
        "theory": _compared(train, sizes.many, tables["many"], of_states=False),
        "theory_of_states": _compared(train, sizes.many, tables["many"], of_states=True),
        "states": n_states,
    }


def _tables(train: Responses, n_states: int, sizes: Sizes, regime: Regime) -> dict[str, list[np.ndarray]]:
    """By weighting, one table a seed; the tables of a seed see the same pairs in the same order."""
    tables: dict[str, list[np.ndarray]] = {weighting: [] for weighting in regime.weightings}
    for seed in range(regime.seeds):
        batch = Batch(_part(train, regime, seed), seed)
        options = {"steps": regime.steps, "batch_size": regime.batch_size, "seed": seed}
        for weighting in regime.weightings:
            table = fit_table(batch, n_states, weighting, consistency_weight=sizes.consistency_weight, **options)
            tables[weighting].append(table)
    return tables


def _part(train: Responses, regime: Regime, seed: int) -> Responses:
    return train.of_pairs(seed * regime.pairs, (seed + 1) * regime.pairs)


def _measured_truth(responses: Responses) -> dict[str, dict[str, float]]:
    """What the truths themselves reach as rewards: one ranks by another less than perfectly, too."""
    known = {
        "top": [truth.values for truth in responses.truth],
        "expected": [truth.scores for truth in responses.truth],
        "score": [truth.clause_scores for truth in responses.truth],
    }
    return {name: measure(exact_rewards(responses, values), responses) for name, values in known.items()}


def _compared(
    train: Responses, regime: Regime, tables: dict[str, list[np.ndarray]], *, of_states: bool
) -> dict[str, list[float]]:
    """First-order theory beside what became of the tables, one number a seed."""
    found = []
    for seed, (uniform, weighted) in enumerate(zip(tables["uniform"], tables["probability"], strict=True)):
        predicted, visits = first_order_shift(uniform, _part(train, regime, seed), of_states=of_states)
        found.append(compare_shift(predicted, weighted - uniform, visits))
    return _collected(found)


def _collected(each: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [one[name] for one in each] for name in each[0]}
