"""What the tabular stage predicts: by language the effect of p instead of 1, and which control foretells it."""

from collections.abc import Mapping

import numpy as np

from icrm_lib.measures.statistics import paired_difference
from icrm_lib.phase.measured import MEASURES
from icrm_lib.phase.study import REGIMES

# One says whether rewards rank prefixes, one whether they move where they should: languages are chosen by these. Of the
# measures of either kind on all tokens, these effects differ between languages by far more than by noise.
DECIDING = ("agreement_score", "change_auc")
CHOSEN, LARGEST = 12, 4


def predicted_effects(records: Mapping[str, dict]) -> dict[str, dict]:
    """Return, by language, regime and measure, what the weights p change against p = 1, over the seeds of the tables.

    Args:
        records: by language, what `study.study_language` returned.

    Returns:
        {language: {regime: {measure: {"uniform", "probability", "effect", "low", "high", "ceiling"}}}}: means, their
        paired difference with its 95 % interval, and the largest mean of all weightings: what this objective
        reaches on exact states.
    """
    return {
        name: {regime: {measure: _effect(record[regime], measure) for measure in MEASURES} for regime in REGIMES}
        for name, record in records.items()
    }


def _effect(tables: dict[str, dict[str, list[float]]], measure: str) -> dict[str, float]:
    by_weighting = {w: np.array(values[measure], dtype=float)[:, None] for w, values in tables.items()}
    found = paired_difference(*((by_weighting[w], np.ones_like(by_weighting[w])) for w in ("probability", "uniform")))
    return {
        "uniform": found.second,
        "probability": found.first,
        "effect": found.difference.value,
        "low": found.difference.low,
        "high": found.difference.high,
        "ceiling": max(float(values.mean()) for values in by_weighting.values()),
    }


def reliability(records: Mapping[str, dict]) -> dict[str, dict[str, float]]:
    """Return, by regime and measure, which share of the variance of effects between languages is no noise of seeds.

    1 - mean squared standard error / variance of the effects, at most 1; below 0 where noise explains more than all.
    """
    result: dict[str, dict[str, float]] = {regime: {} for regime in REGIMES}
    for regime in REGIMES:
        for measure in MEASURES:
            sides = [[one[regime][w][measure] for one in records.values()] for w in ("probability", "uniform")]
            by_seed = np.subtract(*np.array(sides, dtype=float))  # (languages, seeds)
            noise, spread = by_seed.var(axis=1, ddof=1).mean() / by_seed.shape[1], by_seed.mean(axis=1).var(ddof=1)
            result[regime][measure] = float(1 - noise / spread) if spread > 0 else float("nan")
    return result


def verdicts(effects: dict[str, dict]) -> dict[str, dict[str, dict[str, int]]]:
    """Count languages by regime and measure: "helps" and "hurts" where the interval leaves out 0, else "undecided"."""
    counts = {regime: {measure: {"helps": 0, "hurts": 0, "undecided": 0} for measure in MEASURES} for regime in REGIMES}
    for regime, of in counts.items():
        for measure, count in of.items():
            for effect in (one[regime][measure] for one in effects.values()):
                count["helps" if effect["low"] > 0 else "hurts" if effect["high"] < 0 else "undecided"] += 1
    return counts


def regressions(records: Mapping[str, dict], effects: dict[str, dict]) -> dict[str, dict]:
    """Regress the predicted effects on the control variables: which one foretells them.

    Args:
        records: by language, what `study.study_language` returned.
        effects: of `predicted_effects`.

    Returns:
        {regime: {measure: {group: {control: {"slope", "r2", "r2_left_out"}}}}}, groups "known" and "measurable". The
        slope is per standard deviation of the control over languages; `r2_left_out` predicts each language from the
        others. The control "all" stands for all of its group together and has no slope.
    """
    groups = {group: _columns(records, group) for group in ("known", "measurable")}
    result: dict[str, dict] = {}
    for regime in REGIMES:
        result[regime] = {}
        for measure in MEASURES:
            y = np.array([effects[name][regime][measure]["effect"] for name in records])
            result[regime][measure] = {group: _each_and_all(columns, y) for group, columns in groups.items()}
    return result


def _columns(records: Mapping[str, dict], group: str) -> dict[str, np.ndarray]:
    names = next(iter(records.values()))[group]
    return {name: np.array([record[group][name] for record in records.values()], dtype=float) for name in names}


def _each_and_all(columns: dict[str, np.ndarray], y: np.ndarray) -> dict[str, dict]:
    spread = {name: (x - x.mean()) / x.std() for name, x in columns.items() if x.std() > 0}
    found = {name: regression(x[:, None], y) for name, x in spread.items()}
    everything = regression(np.column_stack(list(spread.values())), y)
    return {name: {"slope": one["slopes"][0], **_fit(one)} for name, one in found.items()} | {"all": _fit(everything)}


def _fit(found: dict) -> dict[str, float]:
    return {name: found[name] for name in ("r2", "r2_left_out")}


def regression(x: np.ndarray, y: np.ndarray) -> dict:
    """Least squares with an intercept, and how well each observation is predicted from the others.

    The residual of an observation that was left out is e_i / (1 - h_i), h the diagonal of the hat matrix (Allen,
    Technometrics 1974: PRESS); it is compared with the distance from the mean of the others.

    Args:
        x: shape (N, K), N > K + 1.
        y: shape (N,).

    Returns:
        `slopes`, a list of K; `r2`, in [0, 1]; `r2_left_out`, at most 1; both nan for a constant y.

    Raises:
        ValueError: too few observations.
    """
    n, k = x.shape
    if n <= k + 1:
        raise ValueError(f"{n} observations for {k} slopes and an intercept: give at least {k + 2}")
    design = np.column_stack([np.ones(n), x])
    inverse = np.linalg.pinv(design)
    coefficients, leverage = inverse @ y, np.einsum("ij,ji->i", design, inverse)
    residuals, centred = y - design @ coefficients, y - y.mean()
    left_out = residuals / (1 - np.minimum(leverage, 1 - 1e-12))
    squares = np.array([residuals @ residuals, left_out @ left_out])
    of_means = np.array([centred @ centred, np.square(centred * n / (n - 1)).sum()])
    r2, r2_left_out = (1 - squares / of_means).tolist() if np.ptp(y) > 0 else (float("nan"),) * 2
    return {"slopes": coefficients[1:].tolist(), "r2": r2, "r2_left_out": r2_left_out}


def chosen_languages(effects: dict[str, dict], regime: str = "many") -> list[str]:
    """Choose the languages of the neural stage: extremes and middles of the predicted effect.

    For each of the two deciding measures the two languages of largest, the two of smallest and the two of median
    predicted effect; where one is there already, the next in the same order.

    Returns:
        12 names.
    """
    chosen: list[str] = []
    for measure in DECIDING:
        order = sorted(effects, key=lambda name: effects[name][regime][measure]["effect"])
        middle = sorted(order, key=lambda name: abs(order.index(name) - (len(order) - 1) / 2))
        for ranked in (order, order[::-1], middle):
            chosen += [name for name in ranked if name not in chosen][: CHOSEN // (3 * len(DECIDING))]
    return chosen


def largest_effects(effects: dict[str, dict], among: list[str], regime: str = "many") -> list[str]:
    """Return the four languages, of some, with the largest predicted |effect|: two for each deciding measure."""
    largest: list[str] = []
    for measure in DECIDING:
        order = sorted(among, key=lambda name: -abs(effects[name][regime][measure]["effect"]))
        largest += [name for name in order if name not in largest][: LARGEST // len(DECIDING)]
    return largest


def predict(records: Mapping[str, dict]) -> dict:
    """Return all that is registered before the neural stage.

    Args:
        records: by language, what `study.study_language` returned.

    Returns:
        `chosen`, `largest`, `verdicts`, `reliability`, `effects`, `regressions` as above; `theory`: by language the
        correlation of the first-order shift with the observed one.
    """
    effects = predicted_effects(records)
    chosen = chosen_languages(effects)
    theory = {
        name: {
            kind: float(np.mean(np.array(record[kind]["correlation"], dtype=float)))
            for kind in ("theory", "theory_of_states")
        }
        for name, record in records.items()
    }
    return {
        "chosen": chosen,
        "largest": largest_effects(effects, chosen),
        "verdicts": verdicts(effects),
        "reliability": reliability(records),
        "effects": effects,
        "regressions": regressions(records, effects),
        "theory": theory,
    }
