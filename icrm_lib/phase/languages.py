"""The languages of the study: a full factorial of what could make a generator's probabilities say something of values.

The probabilities are those of the language itself: the writer of the responses is the generator.
"""

import itertools

from icrm_lib.testbed import Language

COUPLINGS = {"bad_likely": -0.6, "even": 0.0, "good_likely": 0.6}  # of a verb's probability with its quality
VERBS = {"5_verbs": 5, "15_verbs": 15, "40_verbs": 40}  # a class: how surprising the tokens are that reveal quality
# Where else surprise lies: names and places with sure words about them; without these; and without names and places.
SURFACES = {
    "sure": {},
    "unsure": {"alternative_probability": 0.5, "linking_words": False},
    "bare": {"alternative_probability": 0.5, "idiosyncratic_words": 0},
}
PERSISTENCES = {"drift": 1 / 3, "persist": 0.75}  # clauses of independent quality; and as in the default language


def phase_languages() -> dict[str, Language]:
    """Return the 54 languages by name, e.g. "good_likely-5_verbs-sure-persist".

    "even-40_verbs-sure-persist" is the default language.
    """
    every = itertools.product(COUPLINGS, VERBS, SURFACES, PERSISTENCES)
    return {"-".join(names): _language(*names) for names in every}


def _language(coupling: str, verbs: str, surface: str, persistence: str) -> Language:
    return Language(
        coupling=COUPLINGS[coupling],
        verbs_per_class=VERBS[verbs],
        persistence=PERSISTENCES[persistence],
        **SURFACES[surface],
    )
