"""Test sets on which the truth is known, and the truth as the rewards of their tokens."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.special import logit

from icrm_lib.lab.workspace import Workspace
from icrm_lib.preferences import preference_rows, tokenize_pairs
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language, TokenTruth, known_truth

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


def every_set() -> tuple[str, ...]:
    """Return the names that `test_set` knows."""
    return (VALIDATION, CALIBRATION, *SHIFTS)


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
    rng = np.random.default_rng([2**31, every_set().index(name)])
    pairs = language.preference_pairs(count, rng, prompts=prompts)
    texts = Dataset.from_list([{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in pairs])
    tokenized, _ = tokenize_pairs(preference_rows(texts)[0], Workspace(profile).tokenizer, max_length=data.max_length)
    if len(tokenized) != count:
        raise ValueError(
            f"{count - len(tokenized)} of {count} {name} pairs are longer than {data.max_length} tokens: raise "
            "data.max_length in the profile"
        )
    order = {prompt: index for index, prompt in enumerate(sorted(prompts))}
    every = [*tokenized["chosen_ids"], *tokenized["rejected_ids"]]
    starts = [*tokenized["prompt_length"], *tokenized["prompt_length"]]
    return TestSet(
        rows=every,
        starts=starts,
        prompts=np.array([order[row["prompt"]] for row in pairs]),
        gold=np.array([[row["chosen_score"], row["rejected_score"]] for row in pairs]),
        language=language,
    )


def true_rewards(profile: Profile, method: str, rows: Sequence[list[int]], starts: Sequence[int]) -> list[np.ndarray]:
    """Token rewards of one of `cells.TRUTH`."""
    known = [test_set(profile, name).truth for name in every_set() if test_set(profile, name).rows is rows]
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
