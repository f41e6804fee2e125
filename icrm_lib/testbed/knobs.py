"""The range of each knob of the generated language."""

from typing import Any

import numpy as np

from icrm_lib.testbed.words import PHRASES


def check_knobs(knobs: dict[str, Any]) -> None:
    """Raise ValueError for the first knob of a `Language` outside its range; `knobs` holds them all."""
    for name, (valid, rule) in _rules(**knobs).items():
        if not valid:
            raise ValueError(f"{name} {knobs[name]!r}: must be {rule}.")


def _rules(
    *,
    seed,
    idiosyncratic_words,
    n_idiosyncratic,
    persistence,
    clauses,
    threshold,
    preference_noise,
    length_confounding,
    subword,
    held_out_verbs,
    only_held_out_verbs,
) -> dict[str, tuple[bool, str]]:
    """For each knob whether it is in its range, and the range in words."""
    is_range = isinstance(clauses, tuple) and len(clauses) == 2 and all(_integer(c, 1, 40) for c in clauses)
    some_held_out = not only_held_out_verbs or round(held_out_verbs * len(PHRASES[0])) > 0
    return {
        "seed": (_integer(seed, 0), "an integer >= 0; use 0, 1, ..."),
        "idiosyncratic_words": (_integer(idiosyncratic_words, 0, 2), "0, 1 or 2; use 2 for a name and a place"),
        "n_idiosyncratic": (
            _integer(n_idiosyncratic, 2, 300) and n_idiosyncratic % 2 == 0,
            "an even integer in 2..300, half of them names and half places; use 300",
        ),
        "persistence": (_number(persistence, 0, 1), "in 0..1; use 1/3 for independent clauses"),
        "clauses": (
            is_range and clauses[0] <= clauses[1],
            "integers (fewest, most) with 1 <= fewest <= most <= 40; use (3, 7)",
        ),
        "threshold": (_integer(threshold), "an integer; use 3"),
        "preference_noise": (_number(preference_noise, 0, 1e300), "finite and >= 0; use 0 for noiseless labels"),
        "length_confounding": (_number(length_confounding, -1, 1), "in -1..1; use 0 for none"),
        "subword": (isinstance(subword, bool), "True or False; use False for one token a word"),
        "held_out_verbs": (_number(held_out_verbs, 0, 0.9), "in 0..0.9; use 0 for all verbs"),
        "only_held_out_verbs": (
            isinstance(only_held_out_verbs, bool) and some_held_out,
            "True or False, True only where verbs are held out; set held_out_verbs, for instance to 0.25",
        ),
    }


def _integer(value: Any, low: float = -np.inf, high: float = np.inf) -> bool:
    return isinstance(value, int | np.integer) and _number(value, low, high)


def _number(value: Any, low: float, high: float) -> bool:
    kinds = int | float | np.integer | np.floating
    return isinstance(value, kinds) and not isinstance(value, bool) and bool(low <= value <= high)
