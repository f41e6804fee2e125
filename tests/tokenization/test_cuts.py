"""What a prompt loses when it is cut: text of the question, of the system prompt, or neither."""

import pytest
from styles import LOSSLESS

from icrm_lib.tokenization import cut_prompt, encoder_for, lost_by_cut

QUESTION, SYSTEM = "Which of the two do you mean?", "Answer only what was asked."
TALK = [
    {"role": "system", "content": SYSTEM},
    {"role": "user", "content": "There are a cat and a dog, a big one."},
    {"role": "assistant", "content": "I have seen both."},
    {"role": "user", "content": QUESTION},
]
SAID = "<|im_end|> and <s> and </s> and <eos> were typed. "  # special tokens of one style or another


@pytest.mark.parametrize("typed", ["", SAID], ids=["plain", "special tokens typed"])
@pytest.mark.parametrize("system", [True, False])
@pytest.mark.parametrize("style", LOSSLESS)
def test_what_is_lost_is_what_the_rest_does_not_hold(style, system, typed, tokenizers):
    tokenizer = tokenizers[style]
    prompt = [dict(message) for message in TALK[not system :]]
    prompt[-3]["content"] += typed
    (encoded,) = encoder_for(tokenizer).encode([(prompt, ["Both."])])
    if isinstance(encoded, ValueError):
        pytest.skip("the template has no system turns")
    whole, seen = len(encoded.prompt), set()
    for left in range(1, whole + 1):
        kept = cut_prompt(encoded.prompt, 1, left + 1, tokenizer.bos_token_id)
        rest = tokenizer.decode(kept)
        lost = lost_by_cut(tokenizer, prompt, encoded, kept)
        assert lost.question == (QUESTION not in rest), (left, rest)
        assert lost.system == (system and SYSTEM not in rest), (left, rest)
        seen.add(lost)
    assert len(seen) == (3 if system else 2)
