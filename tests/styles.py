"""Small tokenizers with the special tokens, the chat template and the habits of well-known families."""

import json

from rows import assistant, user
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

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
    "qwen3": (byte_level, CHATML_TOKENS, QWEN3, (None, "<|im_end|>", "<|im_end|>"), ("<|im_end|>", "<|endoftext|>")),
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


ORDINARY = [
    [user("How do I boil an egg?"), assistant("Put it into water, wait.")],
    [user("Name a colour."), assistant("Blue."), user("And then?"), assistant("I think\n\n12345 reasons.")],
    [user("  spaces\n"), assistant("two  spaces, a tab\t, and\r\nlines\n- one\n- two")],
    [user("Ein Ei? 🥚"), assistant("Größe: naïve e\u0301 👩‍🚀 日本語 שלום مرحبا \u2028 end")],
]


def plain_ids(tokenizer, conversation, **kwargs):
    return tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=False, **kwargs)
