"""Rows refused for what is wrong with them, and conversations tokenised as every other tool does."""

import gzip
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import trl
from datasets import Dataset, disable_progress_bars
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from icrm_lib.preferences import load_preferences, preference_rows, split_by_prompt, tokenize_pairs
from icrm_lib.preferences import loading as preferences
from icrm_lib.tokenization import (
    ResponseTooLong,
    TemplateProblem,
    prepare_tokenizer,
    tokenize_conversation,
)

disable_progress_bars()

# Tokenizers ------------------------------------------------------------------------------------------------
# Small ones with the special tokens, the chat template's form and the habits of well-known families.

TEXTS = [
    "How do I boil an egg? Put it into water, wait seven minutes, and then cool it.",
    "You are a helpful assistant. system user model assistant think",
    "Name a colour.\n\nBlue, I think; 12345 reasons.",
] * 4
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}{{ bos_token + text if loop.first else text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n'"
    " + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
CHATML = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """\
{%- set ns = namespace(last=messages|length - 1) %}
{%- for m in messages %}
    {%- set content, thought = m.content, '' %}
    {%- if m.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if m.role == 'assistant' and loop.index0 == ns.last %}
        {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' }}
        {{- content + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""
ZEPHYR = (
    "{% for m in messages %}\n{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
# No end-of-turn token at all: the closing token is the EOS token that the wrapper appends.
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ':\n' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)
WORDS = "{{ bos_token }}{% for m in messages %}{{ '<' + m.role + '> ' + m.content + ' ' }}{% endfor %}"


def byte_level(specials, split=LLAMA_SPLIT):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
        if split
        else [pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS + ["assistant\n\n"] * 9,
        trainers.BpeTrainer(vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    return backend


def sentencepiece_like(specials):
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=specials + pieces, show_progress=False)
    )
    backend = Tokenizer.from_str(_without_byte_tokens(backend.to_str()))
    ids = [(token, backend.token_to_id(token)) for token in ("<s>",)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=ids)
    return backend


def _without_byte_tokens(text):
    # Byte pieces belong to the vocabulary, but must not be matched in a text.
    data = json.loads(text)
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return json.dumps(data)


def word_level(specials):
    words = [w for text in TEXTS for w in text.replace("\n", " ").split()]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys([*specials, *words]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.normalizer = normalizers.NFC()
    return backend


HEADERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURNS = ["<start_of_turn>", "<end_of_turn>"]
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# style: backend, special tokens, template, (bos, eos, pad), and what must come out: (closing token, pad)
STYLES = {
    "llama3": (
        byte_level,
        ["<|begin_of_text|>", "<|finetune_right_pad_id|>", *HEADERS],
        LLAMA3,
        ("<|begin_of_text|>", "<|eot_id|>", None),
        ("<|eot_id|>", "<|finetune_right_pad_id|>"),
    ),
    "gemma": (
        byte_level,
        ["<pad>", "<eos>", "<bos>", *TURNS],
        GEMMA,
        ("<bos>", "<eos>", "<pad>"),
        ("<end_of_turn>", "<pad>"),
    ),
    "qwen2.5": (
        byte_level,
        CHATML_TOKENS,
        CHATML,
        (None, "<|im_end|>", "<|endoftext|>"),
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3": (
        byte_level,
        CHATML_TOKENS,
        QWEN3,
        (None, "<|im_end|>", "<|im_end|>"),
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "gpt2": (  # white space before a word and at the end of a text are split differently
        lambda specials: byte_level(specials, split=None),
        ["<s>", "</s>", "[PAD]", *HEADERS],
        LLAMA3,
        ("<s>", "</s>", "</s>"),
        ("<|eot_id|>", "[PAD]"),
    ),
    "zephyr": (  # a space before the text, BOS from the tokenizer and not from the template
        sentencepiece_like,
        ["<unk>", "<s>", "</s>"],
        ZEPHYR,
        ("<s>", "</s>", "</s>"),
        ("</s>", "<unk>"),
    ),
    "plain": (byte_level, ["<pad>", "<bos>", "<eos>"], PLAIN, ("<bos>", "<eos>", None), ("<eos>", "<pad>")),
    "words": (
        word_level,
        ["<pad>", "<bos>", "<eos>", "<unk>", "<system>", "<user>", "<assistant>"],
        WORDS,
        ("<bos>", "<eos>", "<pad>"),
        ("<eos>", "<pad>"),
    ),
}
LOSSLESS = [style for style in STYLES if style != "words"]  # those that can spell any text


def raw_tokenizer(style):
    backend, specials, template, (bos, eos, pad), _ = STYLES[style]
    unk = {"unk_token": "<unk>"} if "<unk>" in specials else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend(specials),
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        extra_special_tokens=[s for s in specials if s not in (bos, eos, pad, "<unk>")],
        clean_up_tokenization_spaces=False,
        **unk,
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tokenizers():
    return {style: prepare_tokenizer(raw_tokenizer(style)) for style in STYLES}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ORDINARY = [
    [user("How do I boil an egg?"), assistant("Put it into water, wait.")],
    [user("Name a colour."), assistant("Blue."), user("And then?"), assistant("I think\n\n12345 reasons.")],
    [user("  spaces\n"), assistant("two  spaces, a tab\t, and\r\nlines\n- one\n- two")],
    [user("Ein Ei? 🥚"), assistant("Größe: naïve e\u0301 👩‍🚀 日本語 שלום مرحبا \u2028 end")],
]


def plain_ids(tokenizer, conversation, **kwargs):
    return tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False, **kwargs)


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


@pytest.mark.parametrize("style", STYLES)
def test_a_saved_tokenizer_keeps_the_conventions(style, tokenizers, tmp_path):
    tokenizer, closing = tokenizers[style], STYLES[style][-1][0]
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.padding_side, loaded.truncation_side) == ("right", "left")
    assert loaded.pad_token == tokenizer.pad_token
    for conversation in ORDINARY:
        assert loaded.apply_chat_template(conversation, tokenize=False).endswith(closing)
        assert plain_ids(loaded, conversation) == tokenize_conversation(tokenizer, conversation).input_ids
        assert tokenize_conversation(loaded, conversation) == tokenize_conversation(tokenizer, conversation)
    again = (loaded.chat_template, loaded.pad_token)
    assert prepare_tokenizer(loaded) is loaded
    assert (loaded.chat_template, loaded.pad_token) == again


@pytest.mark.parametrize("style", ["llama3", "qwen3", "zephyr", "plain"])
def test_trl_tokenises_the_same(style, tokenizers):
    rows = [{"prompt": c[:-1], "chosen": [c[-1]], "rejected": [assistant("no " + c[-1]["content"])]} for c in ORDINARY]
    args = SimpleNamespace(max_length=None, dataset_num_proc=None)
    dataset = Dataset.from_list(rows)
    theirs = trl.RewardTrainer._prepare_dataset(None, dataset, tokenizers[style], args, "train")
    ours, _ = tokenize_pairs(preference_rows(dataset)[0], tokenizers[style], max_length=None)
    assert ours["chosen_ids"][:] == theirs["chosen_ids"][:]
    assert ours["rejected_ids"][:] == theirs["rejected_ids"][:]
    again = trl.RewardTrainer._prepare_dataset(None, ours, tokenizers[style], args, "train")
    assert again["chosen_ids"][:] == ours["chosen_ids"][:]  # taken as already tokenised


@pytest.mark.parametrize("style", ["llama3", "qwen3", "gemma"])
def test_transformers_reads_the_reward_at_the_last_id(style, tokenizers):
    tokenizer = tokenizers[style]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForSequenceClassification(config).eval()
    batch = tokenizer.apply_chat_template(ORDINARY, tokenize=True, return_dict=True, return_tensors="pt", padding=True)
    with torch.no_grad():
        pooled = model(**batch).logits[:, 0]
        for reward, conversation in zip(pooled, ORDINARY, strict=True):
            ids = torch.tensor([tokenize_conversation(tokenizer, conversation).input_ids])
            at_each_token = model.score(model.model(ids).last_hidden_state)[0, :, 0]
            torch.testing.assert_close(reward, at_each_token[-1])


TRL_TEMPLATES = [
    *(
        "cohere",
        "deepseekv3",
        "gemma3",
        "gemma3_training",
        "glm4moe",
        "gptoss",
        "gptoss_training",
        "llama3_1",
    ),
    *("lfm2_training", "phi3", "qwen2_5", "qwen2_5_training", "qwen3", "qwen3_training", "qwen3_6_training"),
]


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_wrapping_a_published_template_changes_its_end_alone(name):
    source = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    specials = [
        "<|im_start|>",
        "<|im_end|>",
        "<end_of_turn>",
        "<|eot_id|>",
        "<|END_OF_TURN_TOKEN|>",
        "<|end|>",
    ]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(["<pad>", "<s>", "</s>", *specials, "<|return|>"]),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=[*specials, "<|return|>"],
    )
    tokenizer.chat_template = source
    conversations = [c for c in ORDINARY if c[-1]["content"].strip() == c[-1]["content"]]
    prompts = [c[:-1] for c in conversations]

    def renderings(tokenizer):
        whole = tokenizer.apply_chat_template(conversations, tokenize=False)
        asked = tokenizer.apply_chat_template(prompts, tokenize=False, add_generation_prompt=True)
        masks = tokenizer.apply_chat_template(conversations, return_dict=True, return_assistant_tokens_mask=True)
        return whole, asked, masks["assistant_masks"]

    before = renderings(tokenizer)
    after = renderings(prepare_tokenizer(tokenizer))
    for old, new in zip(before[0], after[0], strict=True):
        assert new in (old.rstrip(), old.rstrip() + "</s>")
    assert after[1] == before[1]
    for old, new in zip(before[2], after[2], strict=True):
        size = min(len(old), len(new))
        assert new[:size] == old[:size]
    assert any(map(any, after[2])) == ("training" in name)
    for conversation in conversations:
        row = tokenize_conversation(tokenizer, conversation, offsets=True)
        assert row.input_ids == plain_ids(tokenizer, conversation)


@pytest.mark.parametrize(
    "source",
    [
        "\n a {% for m in messages %}\n  {{ m.content }}<e>\n  {% endfor %}\n\n",
        "  {% if true %} x\n{% endif %}{{ messages[0].content }}\n {{ messages[-1].content }} \n",
        "{#- b -#}\n\n {%- set a = 1 %}\n{{ messages[-1].content }}\t{% if a %}\n{% endif %}\n{{ a }}\n\n",
    ],
)
@pytest.mark.parametrize("end", ["", "\n", "\n\n  ", " \r\n"])
def test_white_space_of_a_template_is_kept(source, end):
    tokenizer = raw_tokenizer("plain")
    tokenizer.chat_template = source + end
    asked = [{"tokenize": False}, {"tokenize": False, "add_generation_prompt": True}]
    question, answer = ORDINARY[0][:1], ORDINARY[0]
    ended = tokenizer.apply_chat_template(answer, tokenize=False).rstrip() + "<eos>"
    questions = [tokenizer.apply_chat_template(question, **kwargs) for kwargs in asked]
    prepare_tokenizer(tokenizer)
    assert [tokenizer.apply_chat_template(question, **kwargs) for kwargs in asked] == questions
    assert tokenizer.apply_chat_template(answer, tokenize=False) == ended


def test_the_reply_keeps_its_own_white_space_where_no_token_closes_it(tokenizers):
    tokenizer = tokenizers["plain"]
    row = tokenize_conversation(tokenizer, [user("Name a colour."), assistant("Blue. \n\n")])
    assert tokenizer.decode(row.input_ids[row.prompt_length :]) == "Blue. \n\n<eos>"


def test_named_templates():
    tokenizer = raw_tokenizer("qwen2.5")
    tokenizer.chat_template = {"default": CHATML, "tool_use": CHATML.replace("helpful", "handy")}
    prepare_tokenizer(tokenizer)
    for name in ("default", "tool_use"):
        text = tokenizer.apply_chat_template(ORDINARY[0], chat_template=name, tokenize=False)
        assert text.endswith("<|im_end|>")
    assert tokenize_conversation(tokenizer, ORDINARY[0]).input_ids == plain_ids(tokenizer, ORDINARY[0])
    tokenizer.chat_template = {"tool_use": CHATML}
    with pytest.raises(ValueError, match='tool_use but no "default"'):
        prepare_tokenizer(tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chat_template": None}, "no chat template.*set tokenizer.chat_template"),
        (
            {"chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content[0].text }}{% endfor %}"},
            "without the answer",
        ),
        ({"chat_template": "{{ raise_exception('closed') }}"}, "fails on a plain question.*closed"),
        ({"chat_template": PLAIN, "eos_token": None}, "set tokenizer.eos_token"),
    ],
)
def test_tokenizers_that_cannot_be_prepared(change, message):
    tokenizer = raw_tokenizer("plain")
    for name, value in change.items():
        setattr(tokenizer, name, value)
    with pytest.raises(ValueError, match=message):
        prepare_tokenizer(tokenizer)


def test_no_spare_token_to_pad_with():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(["<eos>"]), eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    with pytest.raises(ValueError, match=r"must differ.*resize_token_embeddings"):
        prepare_tokenizer(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<mine>"})
    assert prepare_tokenizer(tokenizer).pad_token == "<mine>"


def test_an_unprepared_tokenizer_is_refused():
    with pytest.raises(ValueError, match="prepare_tokenizer"):
        tokenize_conversation(raw_tokenizer("qwen2.5"), ORDINARY[0])
    with pytest.raises(ValueError, match="the last turn is 'user'"):
        tokenize_conversation(prepare_tokenizer(raw_tokenizer("qwen2.5")), ORDINARY[0][:1])


# Borders, offsets, length -----------------------------------------------------------------------------------


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


# Special tokens in messages ---------------------------------------------------------------------------------


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
        [
            "<|im_end|>",
            "<|im_",
            "end|>",
            "<|im_start|>",
            "<",
            "|>",
            "\n",
            " ",
            "egg",
            "é",
            "🥚",
            "\u200f",
            "ש",
        ]
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


# Pairs ------------------------------------------------------------------------------------------------------


def test_pairs_are_tokenised_like_conversations_and_cut_on_both_sides_alike(tokenizers, tmp_path):
    long, brief = "Put it into water. " * 30, [{"role": "system", "content": ""}, user("And?")]
    rows = [
        {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Blue; 12345.", "source": "a"},
        {"prompt": long, "chosen": "Blue, I think.", "rejected": "no", "source": "b"},
        {"prompt": "And then?", "chosen": "wait seven minutes " * 60, "rejected": "no"},
        {"prompt": long, "chosen": "no", "rejected": "Blue, I think."},
        {"prompt": brief, "chosen": "x", "rejected": "y"},
    ]
    rows = [{**row, "margin": i - 1} for i, row in enumerate(rows)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset, _ = load_preferences(tmp_path / "a.jsonl")
    tokenizer = tokenizers["llama3"]
    pairs, report = tokenize_pairs(dataset, tokenizer, max_length=60)
    columns = ("chosen_ids", "rejected_ids", "prompt_length", "margin", "prompt_id", "source", "line")
    assert set(pairs.column_names) == set(columns)
    kept = [0, 1, 3, 4]
    assert pairs["line"][:] == [i + 1 for i in kept] and pairs["margin"][:] == [i - 1.0 for i in kept]
    assert pairs["prompt_id"][:] == [dataset["prompt_id"][i] for i in kept]
    assert [(r.file, r.line, r.reason) for r in report.refusals] == [("a.jsonl", 3, "reply too long")]
    assert report.notes == ["2 prompts lost their beginning to fit into 60 tokens"]
    for row, source in zip(pairs, dataset.select(kept), strict=True):
        size, whole = row["prompt_length"], source["prompt"][0]["content"] != long
        assert row["chosen_ids"][:size] == row["rejected_ids"][:size]
        longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
        assert longest < 60 if whole else longest == 60
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_ids"]
            alone = tokenize_conversation(tokenizer, [*source["prompt"], assistant(source[side])])
            assert ids[size:] == alone.input_ids[alone.prompt_length :]
            assert ids[0] == tokenizer.bos_token_id
            assert (ids == alone.input_ids) == whole
    with pytest.raises(ValueError, match=r"no usable preference pair:\na.jsonl: 0 kept, 5 refused"):
        tokenize_pairs(dataset, tokenizer, max_length=2)
    with pytest.raises(ValueError, match="no column 'chosen'"):
        tokenize_pairs(dataset.remove_columns("chosen"), tokenizer)


def test_rows_that_a_template_refuses_are_reported(tokenizers):
    system = [{"role": "system", "content": "Be brief."}, user("Name a colour.")]
    rows = {"prompt": [system, system[1:]], "chosen": ["Blue."] * 2, "rejected": ["no"] * 2}
    pairs, report = tokenize_pairs(Dataset.from_dict(rows), tokenizers["gemma"])
    assert len(pairs) == report.kept == 1
    assert report.counts() == {"impossible under the chat template": 1}
    assert "no system role" in report.refusals[0].remedy


def test_several_processes_give_the_same(tokenizers):
    rows = {
        "prompt": [[user(f"Name {i}.")] for i in range(6)],
        "chosen": ["Blue."] * 6,
        "rejected": ["no"] * 6,
    }
    dataset = Dataset.from_dict(rows)
    one, two = (tokenize_pairs(dataset, tokenizers["llama3"], num_proc=n)[0] for n in (None, 2))
    assert one[:] == two[:]


# Loading ----------------------------------------------------------------------------------------------------


def good(**changes):
    return {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Egg.", **changes}


def as_line(row):
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def test_the_report_is_a_short_stable_table(tmp_path):
    rows = [good(prompt=f"q{i}") for i in range(3)] + [good(chosen="")] * 7 + [{"prompt": "a"}, good(prompt="q0")]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(map(as_line, rows)))
    _, report = load_preferences(tmp_path / "rows.jsonl")
    assert str(report) == (
        "rows.jsonl: 4 kept, 8 refused\n"
        "       7  empty text in 'chosen' (line 4, 5, 6, 7, 8, ...)\n"
        "          line 4: found ''; fill it or drop the row\n"
        "       1  missing key 'chosen' (line 11)\n"
        "          line 11: add it (keys here: prompt)\n"
        "  note: 1 rows repeat an earlier row (kept)"
    )


SAME = [  # three ways to write the same pair
    {"prompt": [user("q"), assistant("a"), user("r")], "chosen": "x", "rejected": "y"},
    {
        "prompt": [user("q")],
        "chosen": [assistant("a"), user("r"), assistant("x")],
        "rejected": [assistant("a"), user("r"), assistant("y")],
    },
    {
        "chosen": [user("q"), assistant("a"), user("r"), assistant("x")],
        "rejected": [user("q"), assistant("a"), user("r"), assistant("y")],
    },
    {
        "prompt": "r",
        "chosen": [user("q"), assistant("a"), user("r"), assistant("x")],
        "rejected": [user("q"), assistant("a"), user("r"), assistant("y")],
    },
]


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "json", "parquet"])
def test_forms_of_a_row_and_of_a_file(form, tmp_path):
    path = tmp_path / f"pairs.{form}"
    text = "\n".join(map(json.dumps, SAME))
    if form == "jsonl":
        path.write_text(text)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif form == "json":
        path.write_text(json.dumps([*SAME[:2], "no row", *SAME[2:]], indent=1))
    else:
        rows = [
            {
                **row,
                "prompt": [user(row["prompt"])] if isinstance(row.get("prompt"), str) else row.get("prompt"),
            }
            for row in SAME[1:]
        ]
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    dataset, report = load_preferences(path)
    lines = {"json": [1, 2, 4, 5], "parquet": [1, 2, 3]}.get(form, [1, 2, 3, 4])
    assert dataset["line"][:] == lines
    assert [r.line for r in report.refusals] == ([3] if form == "json" else [])
    for row in dataset:
        assert row["prompt"] == SAME[0]["prompt"] and (row["chosen"], row["rejected"]) == ("x", "y")
    assert len(set(dataset["prompt_id"])) == 1
    assert report.notes == [f"{len(lines) - 1} rows repeat an earlier row (kept)"]
    again, _ = preference_rows(dataset.select([len(lines) - 1]))
    assert again[0] == dataset[len(lines) - 1]


def write(path, *rows):
    path.write_bytes(b"\n".join(map(as_line, rows)))
    return load_preferences(path)


def test_ratings_become_margins(tmp_path):
    rows = [
        good(chosen_rating=4, rejected_rating=1.5),
        good(prompt="b", chosen_score=1, rejected_score=3),
        good(prompt="c", score_chosen=2, score_rejected=2),
        good(prompt="d", margin=-0.25, chosen_score=9, rejected_score=1),
    ]
    dataset, report = write(tmp_path / "rated.jsonl", *rows)
    assert dataset["margin"][:] == [2.5, -2.0, 0.0, -0.25]
    assert report.notes == ["2 rows rate the chosen reply lower than the rejected one (kept)"]
    dataset, report = write(tmp_path / "rated.jsonl", *rows, good(prompt="e", margin=None))
    assert "margin" not in dataset.column_names and "no margin column: only 4 of 5 rows are rated" in report.notes
    assert "margin" not in write(tmp_path / "unrated.jsonl", good())[0].column_names


def test_sources_repetitions_and_contradictions(tmp_path):
    opposite = {"prompt": "Name  a colour. ", "chosen": "Egg.", "rejected": "Blue."}
    dataset, report = write(
        tmp_path / "a.jsonl", good(source="s"), good(source=3), opposite, good(prompt="name a colour.")
    )
    assert dataset["source"][:] == ["s", None, None, None]
    assert report.notes == [
        "1 rows repeat an earlier row (kept)",
        "1 rows prefer the opposite of an earlier row (kept)",
    ]
    first, same, spaced, other = dataset["prompt_id"][:]
    assert first == same == spaced != other


def test_prompt_ids_never_change(tmp_path):
    # Splits are made from them: a changed id moves prompts from training to test sets.
    dataset, _ = write(tmp_path / "a.jsonl", good())
    assert dataset["prompt_id"][:] == ["f1dd003a520c270e"]


def test_places_that_cannot_be_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no file 'data/train.jsonl'.*check the spelling"):
        load_preferences("data/train.jsonl")
    with pytest.raises(FileNotFoundError, match="check the spelling"):
        load_preferences(Path("owner/name"))
    with pytest.raises(IsADirectoryError, match="name one"):
        load_preferences(tmp_path)
    Path("a.csv").write_text("prompt,chosen,rejected")
    with pytest.raises(ValueError, match=r"'\.csv' is none of \.jsonl, "):
        load_preferences("a.csv")
    Path("a.jsonl").write_bytes(as_line(good()))
    with pytest.raises(ValueError, match="for hub data sets"):
        load_preferences("a.jsonl", split="test")
    Path("empty.jsonl").write_bytes(b"\n\n")
    with pytest.raises(ValueError, match="empty.jsonl: 0 kept, 0 refused"):
        load_preferences("empty.jsonl")


def test_hub_ids(monkeypatch):
    seen = []

    def fake(name, *, split, revision):
        seen.append((name, split, revision))
        if split == "gone":
            raise RuntimeError("no network")
        return Dataset.from_list([good(), good(chosen="")])

    monkeypatch.setattr(preferences.datasets, "load_dataset", fake)
    dataset, report = load_preferences("owner/some-name", split="train[:2]", revision="abc")
    assert seen == [("owner/some-name", "train[:2]", "abc")]
    assert dataset["line"][:] == [1] and report.refusals[0].line == 2 and report.source == "owner/some-name"
    with pytest.raises(ConnectionError, match="'gone'.*'owner/some-name'.*no network.*check the id"):
        load_preferences("owner/some-name", split="gone")


def test_a_hub_id_without_network_is_a_clear_error(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(preferences.datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="nobody-here/no-such-set.*check the id, the split and the network"):
        load_preferences("nobody-here/no-such-set")


# Splitting --------------------------------------------------------------------------------------------------


def test_splits_share_no_prompt_and_depend_on_the_seed_alone():
    rows = [{"prompt_id": f"{i % 40:x}", "row": i} for i in range(200)]
    dataset = Dataset.from_list(rows)
    parts = split_by_prompt(dataset, [0.7, 0.2, 0.1], seed=3)
    ids = [set(part["prompt_id"]) for part in parts]
    assert [len(i) for i in ids] == [28, 8, 4] and len(set.union(*ids)) == 40
    assert sorted(itertools.chain.from_iterable(part["row"] for part in parts)) == list(range(200))
    assert all(part["row"][:] == sorted(part["row"]) for part in parts)
    again = split_by_prompt(Dataset.from_list(rows[::-1]), [0.7, 0.2, 0.1], seed=3)
    assert [set(part["prompt_id"]) for part in again] == ids
    assert [set(p["prompt_id"]) for p in split_by_prompt(dataset, [0.7, 0.2, 0.1], seed=4)] != ids
    for wrong in ([0.5, 0.4], [1.5, -0.5], []):
        with pytest.raises(ValueError, match="positive and add up to 1"):
            split_by_prompt(dataset, wrong, seed=0)
    with pytest.raises(ValueError, match="cannot fill"):
        split_by_prompt(dataset, [0.999, 0.001], seed=0)


# Real data --------------------------------------------------------------------------------------------------

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not REAL.is_dir(), reason="no folder shared/data beside the repository")
@pytest.mark.parametrize(("name", "rows", "prompts"), [("pandalm_human", 760, 153), ("dpo_en_demo", 295, None)])
def test_real_files_load_and_tokenise_whole(name, rows, prompts, tokenizers):
    dataset, report = load_preferences(REAL / f"{name}.jsonl")
    assert (report.kept, report.refused) == (rows, 0)
    assert prompts is None or len(set(dataset["prompt_id"])) == prompts
    some = dataset.select(range(60))
    pairs, report = tokenize_pairs(some, tokenizers["qwen2.5"], max_length=None)
    assert report.refused == 0
    for pair, row in zip(pairs, some, strict=True):
        for side in ("chosen", "rejected"):
            ids = pair[f"{side}_ids"]
            assert ids == plain_ids(tokenizers["qwen2.5"], [*row["prompt"], assistant(row[side])])
            assert tokenizers["qwen2.5"].decode(ids[pair["prompt_length"] :]) == row[side] + "<|im_end|>"
