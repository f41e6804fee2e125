"""Scratch tokenizer, small Llama, and the language-model loop."""

import json

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM, TrainingArguments

from icrm_lib.language_model.causal import (
    decoder_states,
    refuse_transformed_logits,
)
from icrm_lib.language_model.scratch import LanguageModelTrainer, scratch_tokenizer, small_llama, train_language_model
from icrm_lib.tokenization import prepare_tokenizer, tokenize_conversation

TEXTS = [
    "How do I boil an egg?",
    "Put it into water, wait seven minutes, and then cool it.",
    "Grüße aus Köln",
] * 3
SCRIPTS = [
    "plain words",
    "  two  spaces\tand\ttabs\r\nand\n\nlines \n",
    "👩‍🔬🏳️‍🌈 emoji 😀",
    "漢字かな交じり文と한국어",
    "שלום עולם, مرحبا",
    "e\u0301 a\u0308 \u0928\u093f Z\u0351\u036b\u0343",
    "\u2028\u0085\ufeff\x00\x7f\U0010ffff",
    "'s it's ' s don ' t .",
]
TALK = [
    {"role": "user", "content": "How do I boil an egg?"},
    {"role": "assistant", "content": "Put it into water 😀"},
]


@pytest.fixture(scope="module")
def scratch():
    return scratch_tokenizer(TEXTS, 320)


@pytest.mark.parametrize("text", SCRIPTS)
def test_every_script_comes_back(scratch, text):
    assert scratch.decode(scratch(text, add_special_tokens=False)["input_ids"]) == text


@settings(deadline=None, max_examples=200, derandomize=True)
@given(text=st.text(max_size=40))
def test_any_text_comes_back_without_special_tokens(scratch, text):
    assume(not any(token in text for token in scratch.all_special_tokens))
    ids = scratch(text, add_special_tokens=False)["input_ids"]
    assert scratch.decode(ids) == text
    assert not set(ids) & set(scratch.all_special_ids)


@pytest.mark.parametrize("vocabulary", [300, 320, 5000])
def test_vocabulary_is_bounded_and_learns_from_the_texts(vocabulary):
    tokenizer = scratch_tokenizer(TEXTS, vocabulary)
    assert 262 < len(tokenizer) <= vocabulary
    assert len(tokenizer("boil an egg", add_special_tokens=False)["input_ids"]) < len("boil an egg")


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="at least 300.*got 299"):
        scratch_tokenizer(TEXTS, 299)


def test_template_has_one_bos_and_ends_with_eos(scratch):
    tokenizer = prepare_tokenizer(scratch_tokenizer(TEXTS, 320))
    for talk in (TALK, [{"role": "system", "content": "Be brief."}, *TALK], [*TALK, *TALK]):
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
        assert ids[-1] == tokenizer.eos_token_id
        assert ids.count(tokenizer.eos_token_id) == len(talk)
        row = tokenize_conversation(tokenizer, talk)
        assert row.input_ids == ids
        assert tokenizer.decode(ids[row.prompt_length :]) == TALK[-1]["content"] + "<eos>"
    asked = tokenizer.apply_chat_template(TALK[:1], add_generation_prompt=True, return_dict=False)
    assert asked == tokenize_conversation(tokenizer, TALK).input_ids[: len(asked)]


def test_tokenizer_comes_back_from_disk(scratch, tmp_path):
    scratch.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in SCRIPTS:
        assert loaded(text)["input_ids"] == scratch(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.apply_chat_template(TALK) == scratch.apply_chat_template(TALK)
    assert loaded.all_special_ids == scratch.all_special_ids
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<bos>", "<eos>")


SIZE = {"hidden_size": 16, "layers": 2, "heads": 2, "max_length": 64}


def test_small_llama_has_the_asked_size_and_tied_embeddings(scratch):
    model = small_llama(scratch, **SIZE, seed=0)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert config.max_position_embeddings == 64 and config.vocab_size == len(scratch)
    assert model.get_input_embeddings().weight.shape == (len(scratch), 16)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
    assert ids == (scratch.bos_token_id, scratch.eos_token_id, scratch.pad_token_id)


def test_small_llama_depends_on_its_seed_alone(scratch):
    first, _, other = (dict(small_llama(scratch, **SIZE, seed=s).named_parameters()) for s in (3, 5, 4))
    torch.rand(7)
    second = dict(small_llama(scratch, **SIZE, seed=3).named_parameters())
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


ROWS = [
    {"input_ids": [1, 7, 8, 9, 10, 2], "prompt_length": 3},
    {"input_ids": [1, 7, 5, 11, 12, 13, 14, 15, 16, 2], "prompt_length": 1},
    {"input_ids": [1, 20, 2], "prompt_length": 2},
]


def trainer_of(model, folder, **settings):
    arguments = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    args = TrainingArguments(output_dir=str(folder), remove_unused_columns=False, **arguments, **settings)
    return LanguageModelTrainer(
        model, pad_token_id=0, failures=folder, args=args, train_dataset=Dataset.from_list(ROWS)
    )


def loss_by_hand(model, rows):
    """Mean over the sequences of the mean loss of the tokens from `prompt_length` on, one by one."""
    total = 0.0
    for row in rows:
        ids = row["input_ids"]
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        asked = range(row["prompt_length"], len(ids))
        total -= sum(logprobs[t - 1, ids[t]] for t in asked) / len(asked)
    return total / len(rows)


@pytest.mark.parametrize("lora", [False, True])
def test_loss_and_gradient_equal_the_mean_of_means(scratch, tmp_path, lora):
    plain = small_llama(scratch, **SIZE, seed=0)
    model = plain
    if lora:
        model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.1)
    trainer = trainer_of(model, tmp_path)
    want = loss_by_hand(model, ROWS)
    got = trainer.compute_loss(model, trainer._collate(ROWS))
    assert got.item() == pytest.approx(want.item(), rel=1e-5)
    trained = [value for value in model.parameters() if value.requires_grad]
    gradients = (torch.autograd.grad(loss, trained) for loss in (got, want))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_padding_and_the_padding_id_change_nothing(scratch, tmp_path):
    model = small_llama(scratch, **SIZE, seed=0)
    trainer = trainer_of(model, tmp_path)
    batch = trainer._collate(ROWS)
    want = trainer.compute_loss(model, dict(batch)).item()
    wide = {name: F.pad(batch[name], (0, 5)) for name in ("input_ids", "attention_mask")}
    wide["input_ids"][wide["attention_mask"] == 0] = 9
    got = trainer.compute_loss(model, {**wide, "prompt_length": batch["prompt_length"]}).item()
    assert got == pytest.approx(want, rel=1e-6)


def test_a_sequence_without_a_token_to_predict_adds_nothing(scratch, tmp_path):
    model = small_llama(scratch, **SIZE, seed=0)
    trainer = trainer_of(model, tmp_path)
    whole = trainer.compute_loss(model, trainer._collate([ROWS[0], {"input_ids": [1, 2], "prompt_length": 2}]))
    assert whole.item() == pytest.approx(loss_by_hand(model, ROWS[:1]).item() / 2, rel=1e-5)


class Wrapper(torch.nn.Module):
    """Stands for DDP: it has the model and none of its attributes."""

    def __init__(self, model):
        super().__init__()
        self.module, self.calls = model, 0

    def forward(self, **inputs):
        self.calls += 1
        return self.module(**inputs)


def test_states_come_through_the_wrapper_and_only_one_position_is_projected(scratch):
    model = small_llama(scratch, **SIZE, seed=0)
    ids = torch.tensor([ROWS[1]["input_ids"]])
    wrapper, projected = Wrapper(model), []
    model.lm_head.register_forward_hook(lambda module, args, out: projected.append(out.shape[1]))
    states = decoder_states(wrapper, model, input_ids=ids)
    assert torch.equal(states, model.model(ids).last_hidden_state)
    assert wrapper.calls == 1 and projected == [1]
    assert not model.get_decoder()._forward_hooks  # ours is gone


def test_the_loss_goes_through_the_wrapper(scratch, tmp_path):
    model = small_llama(scratch, **SIZE, seed=0)
    trainer, wrapper = trainer_of(model, tmp_path), Wrapper(model)
    loss = trainer.compute_loss(wrapper, trainer._collate(ROWS))
    assert wrapper.calls == 1
    assert loss.item() == pytest.approx(loss_by_hand(model, ROWS).item(), rel=1e-5)


def train(scratch, folder, seed=0, batch=3, **settings):
    model = small_llama(scratch, **SIZE, seed=0)
    arguments = {"learning_rate": 1e-2, "seed": seed, "max_steps": 20, "per_device_train_batch_size": batch} | settings
    return train_language_model(model, Dataset.from_list(ROWS), folder=folder, pad_token_id=0, **arguments)


def test_training_lowers_the_loss_and_logs_every_fifth_step(scratch, tmp_path):
    before = loss_by_hand(small_llama(scratch, **SIZE, seed=0), ROWS).item()
    trainer = train(scratch, tmp_path / "new" / "folder")
    after = loss_by_hand(trainer.model.eval(), ROWS).item()
    assert before - after > 1.0
    lines = (tmp_path / "new/folder/log.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == [5, 10, 15, 20, 20]
    assert before > entries[0]["loss"] > entries[3]["loss"] and "train_runtime" in entries[4]
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["log.jsonl"]


def test_training_is_repeatable_and_prints_nothing(scratch, tmp_path, capsys):
    first, second, other = (train(scratch, tmp_path / str(i), s, batch=1) for i, s in enumerate((0, 0, 1)))
    a, b, c = (dict(trainer.model.named_parameters()) for trainer in (first, second, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)
    assert capsys.readouterr().out == ""


def test_epochs_decide_where_no_steps_are_given(scratch, tmp_path):
    assert train(scratch, tmp_path, max_steps=-1, num_train_epochs=4.0, batch=2).state.global_step == 8


def test_capped_logits_are_refused_before_training(scratch, tmp_path):
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    config = Gemma2Config(vocab_size=60, num_attention_heads=2, num_key_value_heads=1, **size)
    assert config.final_logit_softcapping
    with pytest.raises(ValueError, match="gemma2 transforms its logits .*sft_weight 0"):
        trainer_of(Gemma2ForCausalLM(config), tmp_path)
    config.final_logit_softcapping = None
    refuse_transformed_logits(config)
    refuse_transformed_logits(small_llama(scratch, **SIZE, seed=0).config)
