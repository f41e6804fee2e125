"""Conversations that every test of reward models scores."""

import numpy as np
import pytest
from rows import assistant, user


@pytest.fixture(scope="session")
def conversations(language):
    rng = np.random.default_rng(1)
    return [
        [user(prompt), assistant(response)]
        for prompt in language.prompts[:6]
        for response in language.sample_responses(prompt, 3, rng)
    ]
