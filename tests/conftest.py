"""Small things that several test files share; everything is made here, nothing is downloaded."""

import os

os.environ.setdefault("ICRM_UNATTENDED", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from icrm_lib import runtime

runtime.quiet()

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from rows import draw, language_pairs  # noqa: E402
from styles import STYLES, raw_tokenizer  # noqa: E402

from icrm_lib.language_model.scratch import small_llama  # noqa: E402
from icrm_lib.preferences import tokenize_pairs  # noqa: E402
from icrm_lib.testbed import Language, known_truth  # noqa: E402
from icrm_lib.tokenization import prepare_tokenizer  # noqa: E402


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def language():
    return Language()


@pytest.fixture(scope="session")
def drawn(language):
    """300 responses of the language: rows of token ids, starts, texts."""
    return draw(language, 300)


@pytest.fixture(scope="session")
def truth(language, drawn):
    return known_truth(language, *drawn[:2])


@pytest.fixture(scope="session")
def tokenizer(language):
    return prepare_tokenizer(language.tokenizer)


@pytest.fixture(scope="session")
def base_model(tmp_path_factory, tokenizer):
    """Directory of a tiny random-weight Llama with the testbed's tokenizer."""
    folder = tmp_path_factory.mktemp("base_model")
    small_llama(tokenizer, hidden_size=32, layers=2, heads=2, max_length=256, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pairs(language, tokenizer):
    """48 tokenised testbed pairs."""
    return tokenize_pairs(language_pairs(language, 48), tokenizer, max_length=256)[0]


@pytest.fixture(scope="session")
def pairs_with_logprobs(pairs, language):
    """The same pairs with the exact log-probabilities of the response tokens."""

    def logprobs(row):
        start = row["prompt_length"]
        sides = (row["chosen_ids"], row["rejected_ids"])
        chosen, rejected = (np.log(language.token_probs(ids)[start:]).astype(np.float32) for ids in sides)
        return {"chosen_logprobs": chosen, "rejected_logprobs": rejected}

    return pairs.map(logprobs)


@pytest.fixture(scope="session")
def tokenizers():
    """One prepared tokenizer of each style."""
    return {style: prepare_tokenizer(raw_tokenizer(style)) for style in STYLES}
