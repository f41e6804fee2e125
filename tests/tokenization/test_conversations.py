"""Conversations tokenised as every other tool does, with the reply where its tokens say."""

import pytest
from datasets import Dataset
from rows import assistant, user
from styles import LOSSLESS, ORDINARY, STYLES, plain_ids, raw_tokenizer

from icrm_lib.preferences import tokenize_pairs
from icrm_lib.tokenization import ResponseTooLong, TemplateProblem, prepare_tokenizer, tokenize_conversation


@pytest.mark.parametrize("style", STYLES)
def test_ids_are_those_of_the_chat_template_and_the_response_is_reply_and_closing_token(style, tokenizers):
    tokenizer, (closing, pad) = tokenizers[style], STYLES[style][-1]
    for conversation in ORDINARY:
        row = tokenize_conversation(tokenizer, conversation)
        assert row.input_ids == plain_ids(tokenizer, conversation)
        prompt = plain_ids(tokenizer, conversation[:-1], add_generation_prompt=True)
        if style == "words":  # cannot spell unknown words, but counts them
            assert len(row.input_ids) - row.prompt_length == len(conversation[-1]["content"].split()) + 1
        else:
            reply = conversation[-1]["content"]
            assert tokenizer.decode(row.input_ids[row.prompt_length :]) == reply + closing
        if style not in ("qwen3", "gpt2", "zephyr", "words"):  # whose templates or splitting differ there
            assert row.input_ids[: row.prompt_length] == prompt
        assert tokenizer.convert_ids_to_tokens(row.input_ids[-1]) == closing
        if tokenizer.bos_token:
            assert row.input_ids[0] == tokenizer.bos_token_id
            assert row.input_ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.pad_token == pad


def test_the_reply_keeps_its_own_white_space_where_no_token_closes_it(tokenizers):
    tokenizer = tokenizers["plain"]
    row = tokenize_conversation(tokenizer, [user("Name a colour."), assistant("Blue. \n\n")])
    assert tokenizer.decode(row.input_ids[row.prompt_length :]) == "Blue. \n\n<eos>"


@pytest.mark.parametrize("style", LOSSLESS)
def test_offsets_point_into_the_reply(style, tokenizers):
    for conversation in ORDINARY:
        reply = conversation[-1]["content"]
        row = tokenize_conversation(tokenizers[style], conversation, offsets=True)
        assert len(row.offsets) == len(row.input_ids) - row.prompt_length
        assert row.offsets[-1] == (len(reply), len(reply))
        covered = {i for start, end in row.offsets for i in range(start, end)}
        assert {i for i, c in enumerate(reply) if not c.isspace()} <= covered
        assert all(0 <= start <= end <= len(reply) for start, end in row.offsets)
        assert row.offsets == sorted(row.offsets)
        for (start, end), token in zip(row.offsets, row.input_ids[row.prompt_length :], strict=True):
            text = tokenizers[style].decode([token])
            if end - start > 1 and "\ufffd" not in text:
                assert text.strip() == reply[start:end].strip()


def test_offsets_of_a_reply_that_the_template_trims(tokenizers):
    reply = " \nBlue, I think. \n"
    for style in ("llama3", "gemma"):
        row = tokenize_conversation(tokenizers[style], [user("Name a colour."), assistant(reply)], offsets=True)
        assert row.offsets[0][0] == reply.index("B") and row.offsets[-1] == (len(reply), len(reply))
        assert row.offsets[-2][1] == reply.index(".") + 1


@pytest.mark.parametrize("reply", ["\n\nBlue.", " Blue.", "\tBlue"])
@pytest.mark.parametrize("style", ["qwen2.5", "qwen3", "plain", "zephyr", "gpt2"])
def test_no_token_reaches_from_the_prompt_into_the_reply(style, reply, tokenizers):
    tokenizer, closing = tokenizers[style], STYLES[style][-1][0]
    prompt = [user("Name a colour.")]
    row = tokenize_conversation(tokenizer, [*prompt, assistant(reply)], offsets=True)
    usual = tokenize_conversation(tokenizer, [*prompt, assistant("Blue.")])
    assert row.input_ids[: row.prompt_length] == usual.input_ids[: usual.prompt_length]
    expected = reply.strip() if style == "gpt2" else reply  # its template trims
    assert tokenizer.decode(row.input_ids) == tokenizer.apply_chat_template([*prompt, assistant(reply)], tokenize=False)
    assert "".join(tokenizer.decode(row.input_ids[row.prompt_length :]).split()) == expected.strip() + closing
    assert row.offsets[-1] == (len(reply), len(reply))


def test_a_thought_is_part_of_the_response_only_if_the_reply_has_one(tokenizers):
    tokenizer = tokenizers["qwen3"]
    prompt, thinking = [user("Name a colour.")], "<think>\nBlue?\n</think>\n\nBlue."
    without = tokenize_conversation(tokenizer, [*prompt, assistant("Blue.")])
    assert tokenizer.decode(without.input_ids[: without.prompt_length]).endswith("<think>\n\n</think>\n\n")
    row = tokenize_conversation(tokenizer, [*prompt, assistant(thinking)], offsets=True)
    assert tokenizer.decode(row.input_ids[row.prompt_length :]) == thinking + "<|im_end|>"
    assert row.offsets[0][0] == 0
    pairs = {"prompt": [prompt], "chosen": [thinking], "rejected": ["Blue."]}
    pair = tokenize_pairs(Dataset.from_dict(pairs), tokenizer)[0][0]
    both = [pair[f"{side}_ids"][pair["prompt_length"] :] for side in ("chosen", "rejected")]
    empty = "<think>\n\n</think>\n\nBlue.<|im_end|>"
    assert [tokenizer.decode(ids) for ids in both] == [thinking + "<|im_end|>", empty]
    assert pair["chosen_ids"][: pair["prompt_length"]] == pair["rejected_ids"][: pair["prompt_length"]]
    with pytest.raises(TemplateProblem, match="rewrites the reply"):
        tokenize_conversation(tokenizer, [*prompt, assistant("<think>Blue?</think>Blue.")], offsets=True)


def test_a_template_that_hides_where_the_reply_begins_is_named():
    tokenizer = raw_tokenizer("plain")
    # The text before the reply depends on the reply.
    tokenizer.chat_template = "{{ messages[-1].content | length }} {{ messages[-1].content }}<eos>"
    prepare_tokenizer(tokenizer)
    with pytest.raises(TemplateProblem, match="as '4 Blue<eos>'.*neither holds the reply verbatim nor"):
        tokenize_conversation(tokenizer, [user("Name a colour."), assistant("Blue")])


@pytest.mark.parametrize("style", ["llama3", "qwen2.5"])
def test_cutting_takes_the_beginning_of_the_prompt(style, tokenizers):
    tokenizer = tokenizers[style]
    conversation = [user("Put it into water. " * 20), assistant("Blue.")]
    whole = tokenize_conversation(tokenizer, conversation)
    response = whole.input_ids[whole.prompt_length :]
    for length in (len(whole.input_ids) - 1, len(response) + 7, len(response) + 1):
        row = tokenize_conversation(tokenizer, conversation, max_length=length, offsets=True)
        assert len(row.input_ids) == length and row.input_ids[row.prompt_length :] == response
        assert len(row.offsets) == len(response)
        kept, first = row.input_ids[: row.prompt_length], whole.input_ids[0]
        if tokenizer.bos_token:
            assert kept[0] == first
            kept = kept[1:]
        assert kept == whole.input_ids[whole.prompt_length - len(kept) : whole.prompt_length]
    assert tokenize_conversation(tokenizer, conversation, max_length=len(whole.input_ids)) == whole
    with pytest.raises(ResponseTooLong, match=f"has {len(response)} tokens.*max_length is {len(response)}"):
        tokenize_conversation(tokenizer, conversation, max_length=len(response))
