"""Responses of two small languages with all that is known of their tokens."""

import numpy as np
import pytest

from icrm_lib.phase import draw_responses
from icrm_lib.testbed import Language

SHORT = Language(clauses=(1, 3), threshold=1, verbs_per_class=5, coupling=0.6, idiosyncratic_words=0)


@pytest.fixture(scope="session")
def short():
    """(400 pairs of a language with short responses and coupled verbs, number of states)."""
    return draw_responses(SHORT, 400, np.random.default_rng(0), expectations=True)
