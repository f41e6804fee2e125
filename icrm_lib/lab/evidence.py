"""What a reward model's tokens say on the test sets, where the truth is known."""

from pathlib import Path
from typing import Any

import numpy as np

from icrm_lib.lab.cells import Cell
from icrm_lib.lab.test_sets import CALIBRATION, SHIFTS, VALIDATION, TestSet, test_set
from icrm_lib.measures import (
    TokenScorer,
    agreement_by_response,
    change_at_quality,
    localisation,
    partial_agreement,
    smoothness,
    token_agreement,
    token_calibration,
)
from icrm_lib.profiles import Profile


def constants(profile: Profile, cell: Cell) -> dict[str, Any]:
    """See `purposes`."""
    return {"shifts": SHIFTS}


def prepare(profile: Profile) -> None:
    """See `purposes`: every process draws the test sets itself, which is as fast."""


def measure(profile: Profile, cell: Cell, rewards: TokenScorer, folder: Path) -> dict[str, Any]:
    """See `purposes`; a trial of tuning looks at the validation pairs alone."""
    return validate(profile, rewards) if cell.is_trial else measure_tokens(profile, rewards)


def measure_tokens(profile: Profile, rewards: TokenScorer) -> dict[str, Any]:
    """Measure token rewards on every test set.

    Returns:
        `accuracy`: per test set, `right` and `count` of pairs by test prompt, and the same for pairs whose gold scores
        differ (`gold_right`, `gold_count`); `agreement_by_prompt`; `tokens`: of `icrm_lib.measures`, on the first test
        set; `longer_tokens`: agreement on the longer responses.
    """
    sets = {name: test_set(profile, name) for name in SHIFTS}
    scored = {name: rewards(data.rows, data.starts) for name, data in sets.items()}
    data, ours = sets["in_distribution"], scored["in_distribution"]
    fit = test_set(profile, CALIBRATION)
    truth, values, logprobs = data.truth, [t.values for t in data.truth], [t.logprobs for t in data.truth]
    controls = [np.column_stack([p, np.cumsum(p), np.arange(len(p))]) for p in logprobs]
    return {
        "accuracy": {name: _pair_counts(sets[name], scored[name]) for name in SHIFTS},
        "agreement_by_prompt": _by_prompt(data, agreement_by_response(ours, values)),
        "tokens": {
            "agreement": token_agreement(ours, values),
            "score_agreement": token_agreement(ours, [t.clause_scores for t in truth]),
            "partial": partial_agreement(ours, values, controls),
            "calibration": token_calibration(
                ours, values, rewards(fit.rows, fit.starts), [t.values for t in fit.truth]
            ),
            "quality": change_at_quality(ours, [t.quality for t in truth]),
            "localisation": localisation(ours, [t.quality for t in truth]),
            "smoothness": smoothness(ours, logprobs),
        },
        "longer_tokens": token_agreement(scored["longer"], [t.values for t in sets["longer"].truth]),
    }


def validate(profile: Profile, rewards: TokenScorer) -> dict[str, Any]:
    """Measure the accuracy on the validation pairs alone, which is all that tuning may look at."""
    data = test_set(profile, VALIDATION)
    return {"accuracy": {VALIDATION: _pair_counts(data, rewards(data.rows, data.starts))}}


def _pair_counts(data: TestSet, rewards: list[np.ndarray]) -> dict[str, list[int]]:
    chosen, rejected = np.split(np.array([values[-1] for values in rewards]), 2)
    better = np.sign(data.gold[:, 0] - data.gold[:, 1])
    gold_right = (np.sign(chosen - rejected) == better) & (better != 0)
    length = data.prompts.max() + 1
    # A tie is half right, as a coin is: models hardly tie, but the gold score does, and is the ceiling.
    counts = {
        "right": (chosen > rejected) + 0.5 * (chosen == rejected),
        "count": np.ones(len(chosen)),
        "gold_right": gold_right,
    }
    counts["gold_count"] = better != 0
    return {key: np.bincount(data.prompts, weights=value, minlength=length).tolist() for key, value in counts.items()}


def _by_prompt(data: TestSet, values: np.ndarray) -> dict[str, list]:
    """Sum and number of a per-response measure by prompt; both sides of a pair belong to its prompt."""
    prompts, known = np.tile(data.prompts, 2), ~np.isnan(values)
    length = data.prompts.max() + 1
    sums = np.bincount(prompts[known], weights=values[known], minlength=length)
    return {"sum": sums.round(6).tolist(), "count": np.bincount(prompts[known], minlength=length).tolist()}
