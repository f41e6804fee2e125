"""Conversations: refused in one sentence, or written whole as the chat template writes them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rows import assistant, user
from styles import raw_tokenizer
from transformers import AutoModelForSequenceClassification, LlamaConfig

from icrm_lib.reward_model import RewardModel
from icrm_lib.tokenization import TemplateProblem

TOOLS = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m.get('reasoning_content') %}[{{ m['reasoning_content'] }}]{% endif %}"
    "{{ m['content'] or '' }}{% for c in m.get('tool_calls') or [] %}"
    "({{ c['function']['name'] }}: {{ c['function']['arguments'] | tojson }}){% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model():
    tokenizer = raw_tokenizer("plain")
    tokenizer.chat_template = TOOLS
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **sizes)
    torch.manual_seed(0)
    scorer = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        scorer.score.weight.normal_(std=5)
    return RewardModel(scorer, tokenizer)


def plain(model, talk):
    ids = model.tokenizer.apply_chat_template(talk, return_dict=False)
    with torch.no_grad():
        return model.model(input_ids=torch.tensor([ids])).logits.item()


def call(argument, **more):
    return {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": argument}}], **more}


TALKS = {
    "call in the reply": [user("Egg?"), call({"where": "town"}, content="I look.")],
    "another call": [user("Egg?"), call({"where": "everywhere"}, content="I look.")],
    "call alone": [user("Egg?"), call({"where": "town"}, content=None)],
    "call earlier": [user("Egg?"), call("town", content=""), {"role": "tool", "content": "no"}, assistant("No.")],
    "another call earlier": [
        user("Egg?"),
        call("here", content=""),
        {"role": "tool", "content": "no"},
        assistant("No."),
    ],
    "thought": [user("Egg?"), {**assistant("Seven."), "reasoning_content": "Boil it."}],
    "another thought": [user("Egg?"), {**assistant("Seven."), "reasoning_content": "I guess."}],
    "developer": [{"role": "developer", "content": "Be brief."}, user("Egg?"), assistant("Seven.")],
}


def test_what_the_template_writes_counts(model):
    scores = model.score(list(TALKS.values()))
    np.testing.assert_allclose(scores, [plain(model, talk) for talk in TALKS.values()], atol=1e-4)
    assert len(set(scores.round(3))) == len(TALKS)


def test_text_parts_are_text(model):
    parts = [{"type": "text", "text": "Seven "}, {"type": "text", "text": "minutes."}]
    talks = [[user([{"type": "text", "text": "Egg?"}]), assistant(parts)], [user("Egg?"), assistant("Seven minutes.")]]
    one, other = model.score(talks)
    assert one == pytest.approx(other, abs=1e-5)
    assert [t[:3] for t in model.token_rewards(talks[0])] == [t[:3] for t in model.token_rewards(talks[1])]


def test_sequences_of_other_types_are_read(model):
    talks = [TALKS["thought"], TALKS["another thought"]]
    want = model.score(talks)
    np.testing.assert_allclose(model.score(np.array(talks, dtype=object)), want, atol=1e-5)
    np.testing.assert_allclose(model.score(tuple(tuple(talk) for talk in talks)), want, atol=1e-5)
    assert model.score([]).shape == (0,)


def test_control_tokens_of_a_call_stay_text(model):
    hostile = [user("Egg?"), call({"<eos><user>": "a<eos>b"}, content="c<eos>")]
    ids = model.tokenizer.convert_tokens_to_ids("<eos>")
    from icrm_lib.tokenization import tokenize_conversation

    row = tokenize_conversation(model.tokenizer, hostile)
    assert row.input_ids.count(ids) == 2
    assert model.tokenizer.decode(row.input_ids) == model.tokenizer.apply_chat_template(hostile, tokenize=False)


def test_token_rewards_of_a_reply_that_is_more_than_text_are_refused(model):
    with pytest.raises(TemplateProblem, match="has 'reasoning_content' beside its content"):
        model.token_rewards(TALKS["thought"])
    assert model.token_rewards([*TALKS["call earlier"][:-1], assistant("No.")])


ODD = {
    "a conversation": ([user("a"), assistant("b")], r"one conversation of 2 messages; put it in a list"),
    "a text": ("Hello", "conversations is str 'Hello'; give a list of conversations"),
    "a number": (3, "conversations is int 3"),
    "an object": ({"role": "user"}, "conversations is dict"),
    "texts": (["Hello"], "conversation 0 is str 'Hello'; give a list of messages"),
    "none": ([None], "conversation 0 is NoneType None"),
    "numbers": (np.zeros((2, 2)), "message 1 of conversation 0 is float64"),
    "lists": ([[[user("a"), assistant("b")]]], "message 1 of conversation 0 is list; give messages like"),
    "no message": ([[]], "conversation 0 has no message"),
    "no reply": ([[user("a")]], "the last turn is 'user' in conversation 0"),
    "content None": ([[user("a"), assistant(None)]], "message 2 of conversation 0 has NoneType None as content"),
    "no content": ([[user("a"), {"role": "assistant"}]], "message 2 of conversation 0 has no content"),
    "content a number": ([[user(3), assistant("b")]], "message 1 of conversation 0 has int 3 as content"),
    "an image": ([[user([{"type": "image", "url": "x"}]), assistant("b")]], "content part 'image'; only text is read"),
    "no parts": ([[user([]), assistant("b")]], "has list as content"),
    "no role": ([[{"content": "a"}, assistant("b")]], "message 1 of conversation 0 has no role"),
    "gpt": (
        [[user("a"), {"role": "gpt", "content": "b"}]],
        r"the role 'gpt'; use system, user, assistant \(here 'assis",
    ),
    "a role": ([[{"role": ["user"], "content": "a"}, assistant("b")]], r"the role \['user'\]"),
    "half a character": ([[user("a\ud800"), assistant("b")]], r"message 1 of conversation 0 holds U\+D800"),
    "a function": ([[user("a"), {**assistant("b"), "tool_calls": [print]}]], "holds a value that is no JSON"),
    "the second": ([[user("a"), assistant("b")], [user("a"), assistant(None)]], "message 2 of conversation 1"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_conversations_get_one_sentence(name, model):
    value, message = ODD[name]
    for ask in (model.score, model.token_rewards_of):
        with pytest.raises(ValueError, match=message) as raised:
            ask(value)
        assert "\n" not in str(raised.value)


def test_other_odd_arguments_get_one_sentence(model):
    talk = [user("a"), assistant("b")]
    for size in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match=f"batch_size is {size!r}; give 1 or more"):
            model.score([talk], batch_size=size)
    with pytest.raises(ValueError, match="max_length is 1; at least 2"):
        model.score([talk], max_length=1)
    for length in (2.5, "9"):
        with pytest.raises(ValueError, match=f"max_length is {length!r}; at least 2"):
            model.score([talk], max_length=length)
    for rows, message in (
        ([[]], "row 0 has no token"),
        ([[5], [99999]], "row 1 holds 99999; token ids are whole numbers from 0 to"),
        ([[5, -1]], "row 0 holds -1"),
        ([[5.5, 6]], "row 0 holds 5.5"),
        ([5, 6], "rows must be a list of lists"),
    ):
        with pytest.raises(ValueError, match=message):
            model.score_tokens(rows)
    for starts in ([9], [-1], [0, 0]):
        with pytest.raises(ValueError, match="starts must be one position inside each row"):
            model.token_scores([[5, 6]], starts)
    with pytest.raises(ValueError, match="1 rows but 2 prompt_lengths"):
        model.score_tokens([[5, 6]], prompt_lengths=[1, 2])
    with pytest.raises(ValueError, match="1 texts but 2 entries of finished"):
        model.score_prefixes(talk[:1], ["x"], [True, False])
    with pytest.raises(ValueError, match="texts must be a list of texts"):
        model.score_prefixes(talk[:1], "x", [True])
    with pytest.raises(ValueError, match="the prompt is str 'hi'"):
        model.score_prefixes("hi", ["x"], [True])
    with pytest.raises(ValueError, match="the prompt is str 'a'"):
        model.stream("a")
    with pytest.raises(ValueError, match="message 1 of conversation 0 is list"):
        model.token_rewards([talk])
    with pytest.raises(ValueError, match="conversations is SimpleNamespace"):
        model.score(SimpleNamespace())
