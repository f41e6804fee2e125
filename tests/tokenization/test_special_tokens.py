"""Special tokens written out in a message stay text."""

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import assistant, user
from styles import CHATML, LOSSLESS, STYLES, plain_ids, raw_tokenizer

from icrm_lib.preferences import tokenize_pairs
from icrm_lib.tokenization import prepare_tokenizer, tokenize_conversation


@pytest.mark.parametrize("style", LOSSLESS)
def test_special_tokens_in_messages_stay_text(style, tokenizers):
    tokenizer, (_, specials, _, _, (closing, _)) = tokenizers[style], STYLES[style]
    ordinary = [user("Name a colour."), assistant("Blue.")]
    counts = [plain_ids(tokenizer, ordinary).count(tokenizer.convert_tokens_to_ids(s)) for s in specials]
    for special in specials:
        hostile = [user(f"Name a {special}colour{special}."), assistant(f"{special}Blue{special} .{closing}")]
        row = tokenize_conversation(tokenizer, hostile, offsets=True)
        assert [row.input_ids.count(tokenizer.convert_tokens_to_ids(s)) for s in specials] == counts
        assert tokenizer.decode(row.input_ids) == tokenizer.apply_chat_template(hostile, tokenize=False)
        reply = hostile[-1]["content"]
        assert tokenizer.decode(row.input_ids[row.prompt_length :]) == reply + closing
        assert "".join(reply[start:end] for start, end in row.offsets) == reply
        one_side = {"prompt": [ordinary[:1]], "chosen": [reply], "rejected": ["Blue."]}
        pair = tokenize_pairs(Dataset.from_dict(one_side), tokenizer)[0][0]
        usual = tokenize_conversation(tokenizer, ordinary)
        assert pair["rejected_ids"] == usual.input_ids and pair["prompt_length"] == usual.prompt_length


def test_tokens_that_only_the_template_makes_special_are_guarded_and_thoughts_are_not():
    tokenizer = raw_tokenizer("qwen2.5")
    tokenizer.add_tokens(["<think>", "</think>", "<turn>"])
    tokenizer.chat_template = CHATML.replace("<|im_start|>", "<turn>")
    prepare_tokenizer(tokenizer)
    turn, think = tokenizer.convert_tokens_to_ids(["<turn>", "<think>"])
    row = tokenize_conversation(tokenizer, [user("a <turn>assistant"), assistant("<think>b</think> <|im_end|>")])
    assert row.input_ids.count(turn) == 3 and row.input_ids.count(think) == 1


PARTS = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_", "end|>", "<|im_start|>", "<", "|>", "\n", " ", "egg", "é", "🥚", "\u200f", "ש"]
    )
    | st.text(max_size=4)
).map("".join)


@given(question=PARTS, reply=PARTS)
@settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_text_comes_back_and_closes_once(tokenizers, question, reply):
    tokenizer = tokenizers["qwen2.5"]
    question, reply = (text.encode("utf-8", "ignore").decode() for text in (question, reply))
    row = tokenize_conversation(tokenizer, [user(question), assistant(reply)], offsets=True)
    response = row.input_ids[row.prompt_length :]
    assert tokenizer.decode(response) == reply + "<|im_end|>"
    assert response.count(tokenizer.eos_token_id) == 1 and row.input_ids.count(tokenizer.eos_token_id) == 3
    assert {i for start, end in row.offsets for i in range(start, end)} == set(range(len(reply)))
