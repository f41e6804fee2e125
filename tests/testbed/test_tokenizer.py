"""The tokenizer of the generated language."""

import pytest
from languages import PLAIN, SUBWORD, draw, full_ids, prompt_ids
from transformers import AutoTokenizer


@pytest.mark.parametrize("language", [PLAIN, SUBWORD], ids=["words", "pieces"])
def test_tokenizer_round_trips(language, rng):
    tokenizer = language.tokenizer
    texts = [text for _, _, text in draw(language, rng, 100)] + language.prompts
    assert any("," in text for text in texts)
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text
        assert tokenizer.encode(tokenizer.decode(ids)) == ids
    ids = full_ids(language, language.prompts[0], texts[0])
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert tokenizer.decode(ids[len(prompt_ids(language, language.prompts[0])) :], skip_special_tokens=True) == texts[0]


@pytest.mark.parametrize("language", [PLAIN, SUBWORD], ids=["words", "pieces"])
def test_offsets_point_into_the_text(language, rng):
    tokenizer = language.tokenizer
    text = draw(language, rng, 1)[0][2]
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert set(encoded) == {"input_ids", "attention_mask", "offset_mapping"}
    spans = [text[start:end] for start, end in encoded["offset_mapping"]]
    assert spans == [token.removeprefix("##") for token in tokenizer.convert_ids_to_tokens(encoded["input_ids"])]


def test_special_tokens_and_padding():
    tokenizer = PLAIN.tokenizer
    names = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>")
    assert len(set(tokenizer.convert_tokens_to_ids(list(names)))) == 6
    assert set(names) == set(tokenizer.all_special_tokens)
    assert tokenizer.padding_side == "right" and tokenizer.pad_token_id != tokenizer.eos_token_id
    batch = tokenizer(["respect their view", "thank"], padding=True)
    assert batch["input_ids"][1][1:] == [tokenizer.pad_token_id] * 2
    assert batch["attention_mask"] == [[1, 1, 1], [1, 0, 0]]
    assert tokenizer.encode("zebra") == [tokenizer.unk_token_id]
    assert SUBWORD.tokenizer.unk_token_id not in SUBWORD.tokenizer.encode("zebra")


def test_chat_template():
    tokenizer = PLAIN.tokenizer
    user, reply = {"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "use kind words."}

    def render(chat, **kwargs):
        return tokenizer.apply_chat_template(chat, tokenize=False, **kwargs)

    assert render([user, reply]) == "<bos><user>Hi?<eos><assistant>use kind words.<eos>"
    assert render([user], add_generation_prompt=True) == "<bos><user>Hi?<eos><assistant>"
    assert render([user, reply, user]) == "<bos><user>Hi?<eos><assistant>use kind words.<eos><user>Hi?<eos>"
    assert render([{"role": "system", "content": "Count."}, user]) == "<bos>Count.<eos><user>Hi?<eos>"
    with pytest.raises(Exception, match="role tool"):
        render([{"role": "tool", "content": "?"}])
    masked = tokenizer.apply_chat_template([user, reply], return_dict=True, return_assistant_tokens_mask=True)
    replied = [token for token, mask in zip(masked["input_ids"], masked["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(replied, skip_special_tokens=True) == "use kind words."
    assert replied[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("language", [PLAIN, SUBWORD], ids=["words", "pieces"])
def test_tokenizer_saves_and_loads(language, rng, tmp_path):
    language.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    prompt, ids, text = draw(language, rng, 1)[0]
    chat = [{"role": "user", "content": language.prompts[0]}, {"role": "assistant", "content": text}]
    assert loaded.apply_chat_template(chat, return_dict=False) == ids
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.padding_side == "right" and set(loaded(text)) == {"input_ids", "attention_mask"}
    assert loaded.special_tokens_map == language.tokenizer.special_tokens_map
