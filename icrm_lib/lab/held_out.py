"""Test sets on which the truth is known, and what a reward model's tokens say on them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import logit

from icrm_lib.lab.cells import Cell
from icrm_lib.lab.workspace import Workspace
from icrm_lib.measures import (
    TokenScorer,
    agreement_by_response,
    change_at_quality,
    change_detection,
    localisation,
    partial_agreement,
    smoothness,
    token_agreement,
    token_calibration,
)
from icrm_lib.preferences import preference_rows, tokenize_pairs
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language, TokenTruth, known_truth

# How tokens are read, "place" or "closing" (see `reward_model.closing`) -> their rewards. What has no closing token of
# its own to put behind a prefix, a truth or a policy, has the first alone; scores of whole responses are in both.
Readouts = dict[str, TokenScorer]
CALIBRATION_PAIRS = 200  # the map from rewards to values is fitted on them; their prompts are those of the validation


@dataclass(frozen=True)
class TestSet:
    """Pairs of one kind, ready to be scored.

    Attributes:
        rows: token ids, chosen then rejected.
        starts: index of the first response token in each.
        prompts: index of each pair's prompt among the test prompts.
        gold: (pairs, 2) gold scores of chosen and rejected.
        language: that the pairs were drawn from.
    """

    rows: list[list[int]]
    starts: list[int]
    prompts: np.ndarray
    gold: np.ndarray
    language: Language

    @cached_property
    def truth(self) -> list[TokenTruth]:
        """Of every row; computed when it is first asked for."""
        return known_truth(self.language, self.rows, self.starts)


# In what a test set differs from the pairs that the models are trained on, and its share of the test pairs.
SHIFTS: dict[str, tuple[dict[str, Any], float]] = {
    "in_distribution": ({}, 1.0),
    "longer": ({"clauses": (8, 12)}, 0.5),
    "length_reversed": ({"length_confounding": -1.0}, 0.5),
    "unseen_verbs": ({"only_held_out_verbs": True}, 0.5),
    "noisier": ({"preference_noise": 3.0}, 0.5),
}
VALIDATION, CALIBRATION = "validation", "calibration"
EVERY_SET = (VALIDATION, CALIBRATION, *SHIFTS)


@cache
def test_set(profile: Profile, name: str) -> TestSet:
    """Return a test set of `SHIFTS`, the validation or the calibration set; the same for every cell."""
    plain, data = Language(**asdict(profile.language)), profile.data
    if name in SHIFTS:
        changes, share = SHIFTS[name]
        count, prompts = round(share * data.test_pairs), plain.split_prompts()[2]
    else:
        changes, prompts = {}, plain.split_prompts()[1]
        count = data.validation_pairs if name == VALIDATION else min(CALIBRATION_PAIRS, data.validation_pairs)
    language = replace(plain, **changes)
    # A stream of its own for each set, far from those of the training pairs.
    rng = np.random.default_rng([2**31, EVERY_SET.index(name)])
    pairs = language.preference_pairs(count, rng, prompts=prompts)
    texts = Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in pairs])
    tokenized, _ = tokenize_pairs(preference_rows(texts)[0], Workspace(profile).tokenizer, max_length=data.max_length)
    if len(tokenized) != count:
        raise ValueError(
            f"{count - len(tokenized)} of {count} {name} pairs are longer than {data.max_length} tokens: raise "
            "data.max_length in the profile"
        )
    order = {prompt: index for index, prompt in enumerate(sorted(prompts))}
    return TestSet(
        rows=[*tokenized["chosen_ids"], *tokenized["rejected_ids"]],
        starts=[*tokenized["prompt_length"], *tokenized["prompt_length"]],
        prompts=np.array([order[row["prompt"]] for row in pairs]),
        gold=np.array([[row["chosen_score"], row["rejected_score"]] for row in pairs]),
        language=language,
    )


def true_rewards(profile: Profile, method: str, rows: Sequence[list[int]], starts: Sequence[int]) -> list[np.ndarray]:
    """Token rewards of one of `cells.TRUTH`."""
    known = [test_set(profile, name).truth for name in EVERY_SET if test_set(profile, name).rows is rows]
    if method == "true_scores":
        return [t.clause_scores for t in known[0]] if known else _running_gold(profile, rows, starts)
    truth = known[0] if known else known_truth(Language(**asdict(profile.language)), rows, starts)
    return [logit(t.values.clip(1e-9, 1 - 1e-9)) for t in truth]  # as a reward is: a logit


def _running_gold(profile: Profile, rows: Sequence[list[int]], starts: Sequence[int]) -> list[np.ndarray]:
    """Gold score of every prefix of responses that a policy wrote, grammatical or not."""
    language = Language(**asdict(profile.language))
    decode = partial(language.tokenizer.decode, skip_special_tokens=True)

    def gold(ids: list[int]) -> float:
        return language.gold_score([{"role": "assistant", "content": decode(ids)}])

    return [
        np.array([gold(row[start : end + 1]) for end in range(start, len(row))])
        for row, start in zip(rows, starts, strict=True)
    ]


def constants(profile: Profile, cell: Cell) -> dict[str, Any]:
    """See `cell.PURPOSES`."""
    return {"shifts": SHIFTS}


def prepare(profile: Profile) -> list[Path]:
    """See `cell.PURPOSES`: every process draws the test sets itself, which is as fast."""
    return []


def measure(profile: Profile, cell: Cell, readouts: Readouts, folder: Path) -> dict[str, Any]:
    """See `cell.PURPOSES`; a trial of tuning looks at the validation pairs alone."""
    if not cell.is_trial:
        return measure_tokens(profile, readouts)
    data = test_set(profile, VALIDATION)
    return {"accuracy": {VALIDATION: _pair_counts(data, readouts["place"](data.rows, data.starts))}}


def nothing_right(profile: Profile) -> dict[str, Any]:
    """What `measure` gives for a trial that has no model: no validation pair is right."""
    data = test_set(profile, VALIDATION)
    count = np.bincount(data.prompts, minlength=data.prompts.max() + 1).tolist()
    zeros = [0.0] * len(count)
    return {"accuracy": {VALIDATION: {"right": zeros, "count": count, "gold_right": zeros, "gold_count": count}}}


def measure_tokens(profile: Profile, readouts: Readouts) -> dict[str, Any]:
    """Measure token rewards on every test set, by each readout.

    Returns:
        `accuracy`: per test set, `right` and `count` of pairs by test prompt, and the same for pairs whose gold scores
        differ (`gold_right`, `gold_count`); what `_of_tokens` says of the readout "place"; and, where there is one, of
        the readout "closing", under that name.
    """
    sets = {name: test_set(profile, name) for name in SHIFTS}
    place = {name: readouts["place"](data.rows, data.starts) for name, data in sets.items()}
    found = {"accuracy": {name: _pair_counts(sets[name], place[name]) for name in SHIFTS}}
    found |= _of_tokens(profile, readouts["place"], place)
    return found | {name: _of_tokens(profile, rewards, {}) for name, rewards in readouts.items() if name != "place"}


def _of_tokens(profile: Profile, rewards: TokenScorer, known: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """What one readout says of the tokens.

    Args:
        profile: of the test sets.
        rewards: scores tokens.
        known: by test set, token rewards that are there already.

    Returns:
        `agreement_by_prompt`, `expected_by_prompt`, `running_by_prompt`: sum and number of the responses' own rank
        correlations with P(top score | prefix), with E[gold score | prefix] and with the gold score so far, by test
        prompt; `tokens`: of `icrm_lib.measures`, on the first test set; `longer_tokens`: on the longer responses.
    """
    data, longer, fit = (test_set(profile, name) for name in ("in_distribution", "longer", CALIBRATION))
    ours = known["in_distribution"] if known else rewards(data.rows, data.starts)
    ours_longer = known["longer"] if known else rewards(longer.rows, longer.starts)
    values, logprobs, quality, scores, running = (
        [getattr(truth, name) for truth in data.truth]
        for name in ("values", "logprobs", "quality", "scores", "clause_scores")
    )
    controls = [np.column_stack([p, np.cumsum(p), np.arange(len(p))]) for p in logprobs]
    calibration = token_calibration(ours, values, rewards(fit.rows, fit.starts), [t.values for t in fit.truth])
    return {
        "agreement_by_prompt": _by_prompt(data, agreement_by_response(ours, values)),
        "expected_by_prompt": _by_prompt(data, agreement_by_response(ours, scores)),
        "running_by_prompt": _by_prompt(data, agreement_by_response(ours, running)),
        "tokens": {
            "agreement": token_agreement(ours, values),
            "expected_agreement": token_agreement(ours, scores),
            "score_agreement": token_agreement(ours, running),
            "partial": partial_agreement(ours, values, controls),
            "calibration": calibration,
            "quality": change_at_quality(ours, quality),
            "changes": change_detection(ours, values, logprobs),
            "localisation": localisation(ours, quality),
            "smoothness": smoothness(ours, logprobs),
        },
        "longer_tokens": token_agreement(ours_longer, [truth.values for truth in longer.truth]),
    }


def _pair_counts(data: TestSet, rewards: list[np.ndarray]) -> dict[str, list[int]]:
    chosen, rejected = np.split(np.array([values[-1] for values in rewards]), 2)
    better = np.sign(data.gold[:, 0] - data.gold[:, 1])
    length = data.prompts.max() + 1
    counts = {
        # A tie is half right, as a coin is: models hardly tie, but the gold score does, and is the ceiling.
        "right": (chosen > rejected) + 0.5 * (chosen == rejected),
        "count": np.ones(len(chosen)),
        "gold_right": ((chosen - rejected) * better > 0) + 0.5 * ((chosen == rejected) & (better != 0)),
        "gold_count": better != 0,
    }
    return {key: np.bincount(data.prompts, weights=value, minlength=length).tolist() for key, value in counts.items()}


def _by_prompt(data: TestSet, values: np.ndarray) -> dict[str, list]:
    """Sum and number of a per-response measure by prompt; both sides of a pair belong to its prompt."""
    prompts, known = np.tile(data.prompts, 2), ~np.isnan(values)
    length = data.prompts.max() + 1
    sums = np.bincount(prompts[known], weights=values[known], minlength=length)
    return {"sum": sums.round(6).tolist(), "count": np.bincount(prompts[known], minlength=length).tolist()}
