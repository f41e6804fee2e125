"""The truth as a reward model: the exact values of prefixes, and the gold score so far."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
from scipy.special import logit

from icrm_lib.lab.test_sets import every_set, test_set
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language, known_truth


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
