"""What a prepared tokenizer renders, keeps and refuses."""

from datetime import datetime
from pathlib import Path

import pytest
import torch
import trl
from styles import CHATML, ORDINARY, PLAIN, STYLES, byte_level, plain_ids, raw_tokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from icrm_lib.tokenization import adopt_tokenizer, prepare_tokenizer, tokenize_conversation


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


@pytest.fixture
def today(monkeypatch):
    """Set the day that templates of transformers see."""

    def on(day):
        clock = type("Clock", (datetime,), {"now": classmethod(lambda cls, tz=None: day)})
        monkeypatch.setattr(chat_template_utils, "datetime", clock)

    return on


TRL_TEMPLATES = [
    *("cohere", "deepseekv3", "gemma3", "gemma3_training", "glm4moe", "gptoss", "gptoss_training", "llama3_1"),
    *("lfm2_training", "phi3", "qwen2_5", "qwen2_5_training", "qwen3", "qwen3_training", "qwen3_6_training"),
]


@pytest.mark.parametrize("name", TRL_TEMPLATES)
def test_wrapping_a_published_template_changes_its_end_and_its_date_alone(name, today):
    today(datetime(2024, 7, 26, 12))
    source = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    specials = ["<|im_start|>", "<|im_end|>", "<end_of_turn>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>", "<|end|>"]
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


DATED = {
    "Llama 3.2": "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}{% else %}?{% endif %}",
    "Granite": "{%- set d = strftime_now('%B %d, %Y') %}",
    "SmolLM3": "{% macro day() %}{{ strftime_now('%A %-d %b %y %H:%M') }}{% endmacro %}{% set d = day() %}",
}
DAYS = {"Llama 3.2": "26 Jul 2024", "Granite": "July 26, 2024", "SmolLM3": "Friday 26 Jul 24 12:00"}


@pytest.mark.parametrize("change", [prepare_tokenizer, adopt_tokenizer])
@pytest.mark.parametrize("name", DATED)
def test_a_template_that_writes_the_date_writes_one_date(name, change, today, tmp_path, caplog):
    tokenizer = raw_tokenizer("plain")
    tokenizer.chat_template = (
        " \n" + DATED[name] + "Today: {{ d }} {% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    )
    today(datetime(2024, 7, 26, 12))
    text = tokenizer.apply_chat_template(ORDINARY[0], tokenize=False)
    assert change(tokenizer).apply_chat_template(ORDINARY[0], tokenize=False) == text
    assert f"Today: {DAYS[name]} " in text and "26 Jul 2024 on every day" in caplog.text
    today(datetime(2031, 1, 2, 3))
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert one.apply_chat_template(ORDINARY[0], tokenize=False) == text
    caplog.clear()
    template = tokenizer.chat_template
    assert change(tokenizer).chat_template == template and not caplog.text


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
