"""How much there is to train on, before the data are there."""

from dataclasses import asdict, dataclass

import numpy as np
from datasets import Dataset

from icrm_lib.preferences import preference_rows, tokenize_pairs
from icrm_lib.preferences.paper import PRM800K, RECIPES, SHARES, SKYWORK, UNIFIED_FEEDBACK
from icrm_lib.profiles import Profile
from icrm_lib.testbed import Language
from icrm_lib.tokenization import prepare_tokenizer

SAMPLED_PAIRS = 64  # of the testbed, to learn how long its pairs are
# Rows with different ratings, pairs, and problems (Lightman et al. 2023), as published; all about.
PUBLISHED = {UNIFIED_FEEDBACK.name: 848_000, SKYWORK.name: 77_000, PRM800K.name: 12_000}


@dataclass(frozen=True)
class Amount:
    """What is expected of the data.

    Attributes:
        source: `data: preferences` of the profile.
        problems: to sample solutions for, 0 without.
        pairs: to train on.
        tokens: of a pair, prompt counted twice.
        pairs_are, tokens_are: how well they are known.
    """

    source: str
    problems: int
    pairs: int
    tokens: int
    pairs_are: str
    tokens_are: str


def expected_data(profile: Profile) -> Amount:
    """Return how much there is to train on."""
    data, problems = profile.data, 0
    if data.preferences == "testbed":
        known = f"mean of {SAMPLED_PAIRS} pairs"
        return Amount("testbed", 0, data.train_pairs, _testbed_tokens(profile), "exactly", known)
    pairs = data.train_pairs
    if data.preferences == "prm800k":
        problems = PUBLISHED[PRM800K.name]
        pairs = round(problems * SHARES[0]) * (profile.samples.n // 2)
    elif data.preferences in RECIPES:
        pairs = PUBLISHED[UNIFIED_FEEDBACK.name] // data.stride
        if SKYWORK in RECIPES[data.preferences]:
            pairs += PUBLISHED[SKYWORK.name] * 9 // 10
    return Amount(
        source=data.preferences,
        problems=problems,
        pairs=min(pairs, data.train_pairs),
        tokens=data.expected_tokens or 2 * data.max_length,
        pairs_are="about" if data.preferences in RECIPES else "at most",
        tokens_are="as the profile expects" if data.expected_tokens else "at most; set data: expected_tokens",
    )


def _testbed_tokens(profile: Profile) -> int:
    language = Language(**asdict(profile.language))
    rows = language.preference_pairs(SAMPLED_PAIRS, np.random.default_rng(0))
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows]
    rows, _ = preference_rows(Dataset.from_list(rows))
    pairs, _ = tokenize_pairs(rows, prepare_tokenizer(language.tokenizer), max_length=profile.data.max_length)
    return round(sum(len(ids) for side in ("chosen_ids", "rejected_ids") for ids in pairs[side]) / len(pairs))
