"""Whatever is said comes back from the tokens, and no control token with it."""

from datasets import Dataset
from fuzz import FUZZ
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import assistant, user
from styles import LOSSLESS, STYLES

from icrm_lib.preferences import tokenize_pairs
from icrm_lib.tokenization import tokenize_conversation
from icrm_lib.training.collation import DataCollatorForConsistency

SPECIALS = sorted({special for style in LOSSLESS for special in STYLES[style][1]})
PARTS = st.sampled_from(
    [*SPECIALS, "<|im_", "end|>", "<", "|>", "</", "s>", "[PA", "D]", "\n", " ", "egg", "é", "🥚", "ש"]
)
SAID = st.lists(
    PARTS | st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=3), min_size=1
)
SAID = st.builds(lambda parts: "x" + "".join(parts[:8]) + "x", SAID)  # templates may trim white space around it
TALKS = st.builds(
    lambda texts: [user(texts[0]), assistant(texts[1]), user(texts[2])], st.lists(SAID, min_size=3, max_size=3)
)


@given(style=st.sampled_from(LOSSLESS), prompt=TALKS, replies=st.lists(SAID, min_size=2, max_size=2, unique=True))
@settings(max_examples=250, **FUZZ)
def test_texts_come_back_and_no_control_token_with_them(style, prompt, replies, tokenizers):
    tokenizer, (closing, _) = tokenizers[style], STYLES[style][-1]
    special = {tokenizer.convert_tokens_to_ids(token) for token in STYLES[style][1]}
    plain = tokenize_conversation(tokenizer, [user("x"), assistant("x"), user("x"), assistant("x")])
    count = sum(i in special for i in plain.input_ids[: plain.prompt_length])
    rows = {"prompt": [prompt], "chosen": replies[:1], "rejected": replies[1:]}
    pairs, _ = tokenize_pairs(Dataset.from_dict(rows), tokenizer, max_length=None)
    pair, size = pairs[0], pairs[0]["prompt_length"]
    assert sum(i in special for i in pair["chosen_ids"][:size]) == count
    said = tokenizer.decode(pair["chosen_ids"][:size])
    assert all(message["content"] in said for message in prompt)
    for side, reply in zip(("chosen", "rejected"), replies, strict=True):
        ids = pair[f"{side}_ids"]
        assert tokenizer.decode(ids[size:]) == reply + closing and ids[:size] == pair["chosen_ids"][:size]
        assert [i for i in ids[size:] if i in special] == [tokenizer.convert_tokens_to_ids(closing)]
    batch = DataCollatorForConsistency(pad_token_id=tokenizer.pad_token_id, statistic=None)([pair, pair])
    for side, ids, mask in zip(
        ["chosen_ids"] * 2 + ["rejected_ids"] * 2, batch["input_ids"], batch["response_mask"], strict=True
    ):
        assert ids[mask].tolist() == pair[side][size:]
        assert mask.nonzero().flatten().tolist() == list(range(size, len(pair[side])))
