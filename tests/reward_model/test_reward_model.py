"""Scores that depend on the conversation alone, token rewards with exact offsets, saving that other tools can load."""

import itertools
import json
import logging

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from rows import assistant, user
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from icrm_lib.language_model.scratch import scratch_tokenizer
from icrm_lib.reward_model import RewardModel, TokenReward, merge_words
from icrm_lib.reward_model.head import add_mlp_head, capture_head
from icrm_lib.tokenization import ResponseTooLong


@pytest.fixture(scope="module")
def classifier(base_model):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1).eval()


@pytest.fixture(scope="module")
def reward_model(classifier, tokenizer):
    return RewardModel(classifier, tokenizer)


def test_scores_do_not_depend_on_batch_order_or_company(reward_model, conversations):
    scores = reward_model.score(conversations)
    assert scores.dtype == np.float32 and scores.shape == (len(conversations),)
    for size in (1, 5, 100):
        np.testing.assert_allclose(reward_model.score(conversations, batch_size=size), scores, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(conversations))
    shuffled = reward_model.score([conversations[i] for i in order], batch_size=4)
    np.testing.assert_allclose(shuffled, scores[order], atol=1e-5)


def test_score_is_the_models_own_output_and_the_last_token_reward(reward_model, conversations, tokenizer):
    for conversation in conversations[:4]:
        ids = tokenizer.apply_chat_template(conversation, return_dict=False)
        with torch.no_grad():
            plain = reward_model.model(torch.tensor([ids])).logits.item()
        assert reward_model.score([conversation])[0] == pytest.approx(plain, abs=1e-5)
        tokens = reward_model.token_rewards(conversation)
        assert tokens[-1].reward == pytest.approx(plain, abs=1e-5)
        assert tokens[-1].text == "" and tokens[-1].start == tokens[-1].end == len(conversation[-1]["content"])


def test_token_rewards_are_the_rewards_of_the_prefixes(reward_model, conversations, tokenizer):
    """Reading all positions of one pass gives what scoring every prefix on its own gives."""
    conversation = conversations[0]
    response = conversation[-1]["content"]
    tokens = reward_model.token_rewards(conversation)
    assert "".join(t.text for t in tokens).replace(" ", "") == response.replace(" ", "")
    assert all(response[t.start : t.end] == t.text for t in tokens)
    ids = tokenizer.apply_chat_template(conversation, return_dict=False)
    start = len(ids) - len(tokens)
    for step in (0, len(tokens) // 2, len(tokens) - 1):
        with capture_head(reward_model.model) as head, torch.no_grad():
            reward_model.model(torch.tensor([ids[: start + step + 1]]))
        assert head.rewards[0, -1].item() == pytest.approx(tokens[step].reward, abs=1e-5)


def test_saved_models_score_the_same_everywhere(reward_model, conversations, tmp_path):
    reward_model.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert "mlp_head_size" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert torch.equal(saved["score.weight"], reward_model.model.score.weight)
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".pth")) for name in names)
    scores = reward_model.score(conversations)
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path / "saved").score(conversations), scores, atol=1e-6)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").config.num_labels == 1


def test_adapters_are_merged_or_kept(base_model, tokenizer, conversations, tmp_path):
    torch.manual_seed(1)
    plain = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    peft_model = get_peft_model(plain, LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, value in peft_model.named_parameters():
            if "lora_B" in name or "score" in name:
                value.normal_(std=0.2)
    adapted = RewardModel(peft_model, tokenizer)
    scores = adapted.score(conversations)
    adapted.save_pretrained(tmp_path / "merged")
    adapted.save_pretrained(tmp_path / "adapter", adapter_only=True)
    np.testing.assert_allclose(adapted.score(conversations), scores, atol=1e-6)  # saving left it as it was
    for folder in ("merged", "adapter"):
        loaded = RewardModel.from_pretrained(tmp_path / folder)
        np.testing.assert_allclose(loaded.score(conversations), scores, atol=1e-4)
    size = {f: sum(p.stat().st_size for p in (tmp_path / f).glob("*.safetensors")) for f in ("merged", "adapter")}
    assert size["adapter"] < size["merged"]


def test_scores_of_token_ids_are_those_of_the_conversations(reward_model, conversations, tokenizer):
    rows = [tokenizer.apply_chat_template(c, return_dict=False) for c in conversations]
    scores = reward_model.score(conversations)
    np.testing.assert_allclose(reward_model.score_tokens(rows, batch_size=4), scores, atol=1e-5)
    tokens = [reward_model.token_rewards(c) for c in conversations]
    starts = [len(row) - len(part) for row, part in zip(rows, tokens, strict=True)]
    for got, part in zip(reward_model.token_scores(rows, starts, batch_size=5), tokens, strict=True):
        np.testing.assert_allclose(got, [t.reward for t in part], atol=1e-5)


def test_a_model_without_padding_token_gets_the_tokenizers(base_model, tokenizer, conversations):
    """Otherwise plain transformers would refuse batches, or read the reward at another token."""
    model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    model.config.pad_token_id = None
    scores = RewardModel(model, tokenizer).score(conversations, batch_size=4)
    texts = [tokenizer.apply_chat_template(c, tokenize=False) for c in conversations]
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.no_grad():
        plain = model(**batch).logits[:, 0].numpy()
    np.testing.assert_allclose(plain, scores, atol=1e-5)


def test_a_model_cuts_what_it_scores_as_it_was_trained_and_says_so_once(base_model, tokenizer, tmp_path, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    model.config.icrm_max_length = 24
    RewardModel(model, tokenizer).save_pretrained(tmp_path)
    kept = RewardModel.from_pretrained(tmp_path)
    long = [user("What is an effective way to calm an angry customer? " * 3), assistant("listen very carefully.")]
    short = [user("Why?"), assistant("listen.")]
    caplog.clear()
    scores = kept.score([long, short])
    assert "1 of 2 conversations lost the beginning of their prompt to fit into the 24 tokens" in caplog.text
    caplog.clear()
    np.testing.assert_allclose(kept.score([long, short], max_length=24), scores, atol=1e-6)
    assert kept.token_rewards(long)[-1].reward == pytest.approx(scores[0], abs=1e-5) and not caplog.text
    prefixes = kept.score_prefixes(long[:-1], [long[-1]["content"]] * 2, [True, False], readout="closing")
    np.testing.assert_allclose(prefixes, [scores[0]] * 2, atol=1e-5)
    whole = kept.score([long], max_length=200)
    assert abs(whole[0] - scores[0]) > 1e-6


def test_a_response_that_is_longer_than_those_of_training_is_scored_whole_and_counted(base_model, tokenizer, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    long = [user("Why?"), assistant("listen very carefully. " * 8)]
    short = [user("Why?"), assistant("listen.")]
    uncut = RewardModel(model, tokenizer).score([long, short])
    model.config.icrm_max_length = 24
    found = RewardModel(model, tokenizer)
    np.testing.assert_allclose(found.score([long, short]), uncut, atol=1e-6)
    assert "0 of 2 conversations lost" in caplog.text and "and 1 whose response alone is longer" in caplog.text
    prefixes = found.score_prefixes(long[:-1], [long[-1]["content"]], [True])
    np.testing.assert_allclose(prefixes, uncut[:1], atol=1e-5)
    with pytest.raises(ResponseTooLong):
        found.score([long, short], max_length=24)


def test_wrong_models_are_refused(base_model, tokenizer, reward_model, tmp_path):
    two = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=2)
    with pytest.raises(ValueError, match="num_labels=1"):
        RewardModel(two, tokenizer)
    with pytest.raises(ValueError, match="adapter_only"):
        reward_model.save_pretrained(tmp_path, adapter_only=True)
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=1
    )
    with pytest.raises(ValueError, match="score"):
        RewardModel(BertForSequenceClassification(config), tokenizer)


# An MLP head


def with_mlp(base_model, lora=False):
    """A model with GRM's head, and where asked a LoRA adapter that does something."""
    torch.manual_seed(2)
    model = add_mlp_head(AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1), 24)
    if lora:
        options = {"target_modules": "all-linear", "exclude_modules": r"(.*\.)?score(\..*)?"}
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, **options))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or ("score" in name and "original" not in name):
                value.normal_(std=0.3)
    return model


@pytest.mark.parametrize("lora", [False, True])
def test_an_mlp_head_is_dropout_linear_relu_linear_without_the_dropout(base_model, tokenizer, conversations, lora):
    reward_model = RewardModel(with_mlp(base_model, lora).train(), tokenizer)
    with capture_head(reward_model.model) as head:
        scores = reward_model.score(conversations[:1])
    np.testing.assert_array_equal(reward_model.score(conversations[:1]), scores)
    values = {name.replace("modules_to_save.default.", ""): v for name, v in reward_model.model.state_dict().items()}
    w1, b1, w2, b2 = (
        next(v.double() for name, v in values.items() if name.endswith(f"score.{part}") and "original" not in name)
        for part in ("1.weight", "1.bias", "3.weight", "3.bias")
    )
    hidden = head.hidden[0, -1].double()
    want = w2[0] @ (w1 @ hidden + b1).clamp(min=0) + b2[0]
    assert w1.shape == (24, 32) and scores[0] == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_a_model_with_an_mlp_head_loads_as_it_was_saved(base_model, tokenizer, conversations, tmp_path, lora):
    model = with_mlp(base_model, lora)
    reward_model = RewardModel(model, tokenizer)
    scores = reward_model.score(conversations)
    reward_model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mlp_head_size"] == 24
    torch.manual_seed(9)
    close = 1e-5 if lora else 1e-6  # merging rounds
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path).score(conversations), scores, atol=close)
    assert np.std(scores) > 0.01
    half = RewardModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {value.dtype for value in half.model.parameters()} == {torch.bfloat16}
    np.testing.assert_allclose(half.score(conversations), scores, atol=0.1)


def test_an_adapter_with_an_mlp_head_is_read_with_it(base_model, tokenizer, conversations, tmp_path):
    """PEFT alone would take a fresh linear head and leave out the saved one."""
    reward_model = RewardModel(with_mlp(base_model, lora=True), tokenizer)
    scores = reward_model.score(conversations)
    reward_model.save_pretrained(tmp_path, adapter_only=True)
    assert not (tmp_path / "model.safetensors").exists()
    loaded = RewardModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded.score(conversations), scores, atol=1e-5)
    loaded.save_pretrained(tmp_path / "whole")
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path / "whole").score(conversations), scores, atol=1e-5)


class Heard(logging.Handler):
    """Collects what transformers says from warnings on, which elsewhere in the tests it may not say."""

    def __enter__(self):
        self.said, self.level_before = [], transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_warning()
        transformers.logging.add_handler(self)
        return self

    def __exit__(self, *exception):
        transformers.logging.remove_handler(self)
        transformers.logging.set_verbosity(self.level_before)

    def emit(self, record):
        self.said.append(record.getMessage())


@pytest.mark.parametrize("adapter_only", [False, True])
def test_an_mlp_head_loads_without_a_word(base_model, tokenizer, tmp_path, capfd, adapter_only):
    RewardModel(with_mlp(base_model, lora=True), tokenizer).save_pretrained(tmp_path, adapter_only=adapter_only)
    with Heard() as heard, capfd.disabled():
        AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    assert any("score.weight" in line for line in heard.said)  # it does speak when asked a plain model
    capfd.readouterr()
    with Heard() as heard:
        RewardModel.from_pretrained(tmp_path)
        assert transformers.logging.get_verbosity() == logging.WARNING  # as before
    assert heard.said == [] and capfd.readouterr().err == ""


def test_an_mlp_head_that_is_not_all_there_is_refused(base_model, tokenizer, tmp_path):
    RewardModel(with_mlp(base_model), tokenizer).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["score.3.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="score has the tensors 1.bias, 1.weight, 3.bias; one linear layer, or"):
        RewardModel.from_pretrained(tmp_path)


# Words and streams

TEXTS = {
    "plain": "Use kind words, don't shout!",
    "emoji with joiners": "Well done 👩‍👩‍👧‍👦 and 👍🏽 again",
    "CJK": "我喜欢 reward 模型。",
    "right to left": "שלום עולם، مرحبا بالعالم",
    "combining marks": "e\u0301tude nai\u0308ve a\u030a\u0323",
    "spaces and lines": "  two  spaces\n\n\tand a tab ",
    "zero width": "in\u200bvisible \u2066iso\u2069",
}


@pytest.fixture(scope="module")
def byte_level():
    """A tokenizer whose tokens are bytes and pairs of bytes, so that characters are cut."""
    return scratch_tokenizer(["ab cd. " * 30, *TEXTS.values()], 300)


@pytest.fixture(scope="module")
def byte_model(byte_level):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=len(byte_level), num_labels=1, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    return RewardModel(AutoModelForSequenceClassification.from_config(config), byte_level)


def ask(text):
    return [user("Hi"), assistant(text)]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_offsets_are_characters_of_the_response_and_leave_none_out(byte_model, text):
    tokens = byte_model.token_rewards(ask(text))
    assert [token.text for token in tokens] == [text[token.start : token.end] for token in tokens]
    covered = {i for token in tokens for i in range(token.start, token.end)}
    assert covered == set(range(len(text)))
    assert all(a.start <= b.start and a.end <= b.end for a, b in itertools.pairwise(tokens))
    assert (tokens[-1].text, tokens[-1].start, tokens[-1].end) == ("", len(text), len(text))
    assert tokens[-1].reward == pytest.approx(byte_model.score([ask(text)])[0], abs=1e-5)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_words_put_together_are_the_response_with_the_reward_of_their_last_token(byte_model, text):
    tokens, words = byte_model.token_rewards(ask(text)), byte_model.token_rewards(ask(text), words=True)
    assert "".join(word.text for word in words) == text
    assert all(a.end == b.start for a, b in itertools.pairwise(words))
    last = {token.end: token.reward for token in tokens if token.text}  # of several with one end, the last
    assert all(word.reward == pytest.approx(last[word.end], abs=1e-5) for word in words[:-1])
    assert words[-1] == tokens[-1]


def test_word_boundaries_are_those_of_unicode(byte_model):
    def words(text):
        return [word.text for word in byte_model.token_rewards(ask(text), words=True)][:-1]

    assert words(TEXTS["plain"]) == ["Use", " kind", " words", ",", " don't", " shout", "!"]
    assert words(TEXTS["emoji with joiners"])[2] == " 👩‍👩‍👧‍👦"
    assert words(TEXTS["combining marks"])[0] == "e\u0301tude"
    assert words("שלום עולם") == ["שלום", " עולם"]


def test_a_token_over_two_words_belongs_to_the_first():
    tokens = [TokenReward("a b", 0, 3, 1.0), TokenReward("c", 3, 4, 2.0), TokenReward("", 4, 4, 3.0)]
    assert merge_words(tokens, "a bc") == [TokenReward("a b", 0, 3, 1.0), TokenReward("c", 3, 4, 2.0), tokens[-1]]


def test_many_conversations_have_the_token_rewards_of_each(reward_model, conversations):
    for one, conversation in zip(reward_model.token_rewards_of(conversations), conversations, strict=True):
        alone = reward_model.token_rewards(conversation)
        assert [token[:3] for token in one] == [token[:3] for token in alone]
        np.testing.assert_allclose([t.reward for t in one], [t.reward for t in alone], atol=1e-5)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_stream_ends_where_the_whole_response_ends(byte_model, text):
    stream = byte_model.stream(ask(text)[:1])
    for end in range(1, len(text) + 1):
        rewards = stream.update(text[:end])
        assert rewards[-1].end <= end and rewards[-1].text
    finished = stream.update(text, finished=True)
    whole = byte_model.token_rewards(ask(text))
    assert [token[:3] for token in finished] == [token[:3] for token in whole]
    np.testing.assert_allclose([t.reward for t in finished], [t.reward for t in whole], atol=1e-5)


def test_a_saved_model_speaks_the_words_of_transformers_4_too(base_model, tokenizer, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    RewardModel(model, tokenizer).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rope_theta"] == 5e5 and config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert config["torch_dtype"] == "float32"
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in saved
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert sorted(again.all_special_tokens) == sorted(tokenizer.all_special_tokens)
    assert RewardModel.from_pretrained(tmp_path).model.config.rope_parameters["rope_theta"] == 5e5
