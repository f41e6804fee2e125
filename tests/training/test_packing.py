"""Packing: every token once, little padding, and the same losses and gradients as a padded batch."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, save_tiny
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from icrm_lib.language_model.attention import MASKED
from icrm_lib.preferences import LABEL_KEYS
from icrm_lib.reward_model.head import add_mlp_head, capture_head
from icrm_lib.training.collation import STEP_COLUMNS, DataCollatorForConsistency
from icrm_lib.training.packing import MOST_PADDING, call_packed, layout_of, packing


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(0, 50))
@settings(deadline=None, max_examples=200)
def test_packing_holds_every_token_once_and_rows_in_one_piece(lengths, more):
    width = max(lengths) + more
    pack, segments, places = packing(lengths, width)
    assert all(
        pack.flatten()[places[row, :length]].tolist() == list(range(row * width, row * width + length))
        for row, length in enumerate(lengths)
    )
    assert ((segments < 0) == (pack < 0)).all() and (segments[pack >= 0] % 3 == 0).all()
    tokens = pack[pack >= 0]
    expected = [row * width + column for row, length in enumerate(lengths) for column in range(length)]
    assert sorted(tokens.tolist()) == expected
    assert (pack < 0).sum() <= MOST_PADDING * pack.numel()
    for bin_row in pack:
        steps = bin_row[bin_row >= 0].diff()
        starts = bin_row[bin_row >= 0][1:][steps != 1]
        assert (starts % width == 0).all()  # what does not continue begins a row
        assert (bin_row.flip(0) >= 0).int().cumsum(0).bool().flip(0).equal(bin_row >= 0)  # empty at the end only


def test_rows_of_one_length_stay_rows():
    assert packing([5, 5, 5], 7).tokens.tolist() == [[row * 7 + column for column in range(5)] for row in range(3)]


def test_kernels_that_know_of_packing_get_one_row():
    pack = packing([5, 3, 9], 9, one_row=True).tokens
    assert pack.tolist() == [[*range(18, 27), *range(5), *range(9, 12)]]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny(request.param, folder)
    return folder


METHODS = {
    "bt": {"consistency_weight": 0.0, "sft_weight": 0.0},
    "icrm": {"sft_weight": 0.5},
    "grm": {"consistency_weight": 0.0, "sft_weight": 0.3, "text_form": "grm_dpo_noref"},
    "outcome": {"loss": "outcome", "sft_weight": 0.1},
    "process": {"loss": "process", "sft_weight": 0.0},
    "mlp": {"sft_weight": 0.5, "mlp": True},
    "expected": {"sft_weight": 0.0, "form": "expected", "weighting": "uniform", "siblings": 2},
}


def rows():
    generator = torch.Generator().manual_seed(0)
    result = []
    for prompt, chosen, rejected in ((3, 30, 4), (9, 5, 6), (2, 2, 2)):
        draw = torch.randint(5, 300, (prompt + chosen + rejected,), generator=generator).tolist()
        row = {"prompt_length": prompt}
        for side, part in (("chosen", draw[prompt : prompt + chosen]), ("rejected", draw[prompt + chosen :])):
            row[f"{side}_ids"] = draw[:prompt] + part
            row[f"{side}_logprobs"] = (-torch.rand(len(part), generator=generator)).tolist()
            row[f"{side}_step_values"] = torch.rand(len(part), generator=generator).tolist()
            row[f"{side}_sibling_ids"] = torch.randint(5, 300, (len(part), 4), generator=generator).tolist()
            row[f"{side}_sibling_logprobs"] = (-2 * torch.rand(len(part), 4, generator=generator)).tolist()
            row[f"{side}_label"] = float(side == "chosen")
        result.append(row)
    assert set(LABEL_KEYS + STEP_COLUMNS) <= set(result[0])
    return result


@pytest.fixture
def loss_and_gradients(family, make):
    def loss_and_gradients(padding_free, prefix_sharing=False, mlp=False, **settings):
        tokenizer = AutoTokenizer.from_pretrained(family)
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(family, num_labels=1, dtype=torch.float64)
        data = Dataset.from_list(rows())
        if mlp:
            add_mlp_head(model, 8)
        options = settings | {"padding_free": padding_free, "prefix_sharing": prefix_sharing}
        trainer = make(data, model=model, tokenizer=tokenizer, lora=False, **options)
        trainer.model.train()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
        assert ("tokens" in batch) == padding_free and ("segments" in batch) == prefix_sharing
        places = batch["tokens"].numel() if padding_free else batch["input_ids"].numel()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        return loss.detach(), gradients, metrics, places

    return loss_and_gradients


@pytest.mark.parametrize("sharing", [False, True], ids=["packed", "shared"])
@pytest.mark.parametrize("method", METHODS)
def test_the_layout_changes_nothing_else(loss_and_gradients, method, sharing):
    padded, gradients, metrics, places = loss_and_gradients(False, **METHODS[method])
    packed, others, again, fewer = loss_and_gradients(True, sharing, **METHODS[method])
    assert fewer < (0.55 if sharing else 0.7) * places
    # In float64 but for Gemma's and Qwen's norms, the text term and the metrics.
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=1e-8)
    assert set(gradients) == set(others)
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))
    shared = sorted(set(metrics) & set(again))
    assert len(shared) >= 5
    assert [again[name] for name in shared] == pytest.approx([metrics[name] for name in shared], rel=1e-5, abs=1e-7)


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
OWN = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "mistral": {"sliding_window": None, "num_key_value_heads": 1},
    "gemma": {"head_dim": 16, "num_key_value_heads": 1},
    "qwen3": {"head_dim": 16, "num_key_value_heads": 1},
}


def tiny_scorer(kind, attention, **more):
    torch.manual_seed(0)
    own = OWN.get(kind, {"num_key_value_heads": 1} if kind not in ("phi", "gpt_neox") else {})
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {} if kind == "gpt2" else SIZES
    config = CONFIG_MAPPING[kind](vocab_size=300, num_labels=1, **ids, **{**sizes, **own, **more})
    config.initializer_range = 0.2
    return AutoModelForSequenceClassification.from_config(config, attn_implementation=attention)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", sorted(MASKED))
def test_every_listed_architecture_gives_the_same_rewards(kind, attention):
    model = tiny_scorer(kind, attention).eval()
    assert layout_of(model.config, "cpu", "auto", "auto")["prefix_sharing"]
    examples = [{**row, "chosen_ids": row["chosen_ids"], "margin": 0.0} for row in rows()]
    examples[1]["rejected_ids"] = [299, *examples[1]["rejected_ids"][1:]]  # no prompt of the chosen one
    padded = DataCollatorForConsistency(pad_token_id=0)(examples)
    with torch.no_grad(), capture_head(model) as head:
        model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"])
    for one_row in (False, True):
        collate = DataCollatorForConsistency(pad_token_id=0, padding_free=True, prefix_sharing=True, one_row=one_row)
        batch = collate(examples)
        packed = {name: batch[name] for name in ("tokens", "segments", "places")}
        total = int(padded["attention_mask"].sum())
        assert (packed["tokens"] >= 0).sum() == total - sum(examples[pair]["prompt_length"] for pair in (0, 2))
        with torch.no_grad(), capture_head(model) as other:
            outputs = call_packed(model, other, packed, 6, attention)(padded["input_ids"], padded["attention_mask"])
        real = padded["attention_mask"].bool()
        torch.testing.assert_close(other.rewards[real], head.rewards[real], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.hidden[real], head.hidden[real], rtol=1e-3, atol=1e-4)
        last = head.rewards[torch.arange(6), real.sum(1) - 1]
        torch.testing.assert_close(outputs.logits[:, 0], last, rtol=1e-4, atol=1e-4)
        assert last.std() > 1e-2


REFUSED = {
    "gemma2": ({"sliding_window": 8, "head_dim": 16, "num_key_value_heads": 1}, "gemma2 is not among gemma, gpt2"),
    "mistral": ({"sliding_window": 8}, "this mistral looks through a sliding window"),
    "bloom": ({"n_head": 2}, "bloom is not among"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_architectures_that_cannot_are_refused_by_name_and_left_alone_by_auto(kind):
    more, reason = REFUSED[kind]
    config = tiny_scorer(kind, "eager", **more).config
    with pytest.raises(ValueError, match=reason):
        layout_of(config, "cpu", "auto", True)
    assert not any(layout_of(config, "cpu", "auto", "auto").values())


@pytest.mark.parametrize(
    ("attention", "device", "expected"),
    [
        ("sdpa", "cpu", (True, True, False)),
        ("sdpa", "cuda", (False, False, False)),  # a dense mask on a GPU costs what padding costs
        ("flash_attention_2", "cuda", (True, False, True)),
        ("flex_attention", "cuda", (True, True, False)),
    ],
)
def test_auto_depends_on_the_kernel(attention, device, expected):
    config = LlamaConfig()
    config._attn_implementation = attention
    layout = layout_of(config, device, "auto", "auto")
    assert tuple(layout[name] for name in ("padding_free", "prefix_sharing", "one_row")) == expected
    assert not any(layout_of(config, device, False, "auto").values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_with_lora_and_checkpointing_a_training_is_the_same(make, rich, checkpointing):
    def train(choice):
        settings = {"sft_weight": 0.1, "padding_free": choice, "prefix_sharing": choice, "seed": 1}
        trainer = make(rich, **settings, gradient_checkpointing=checkpointing)
        assert trainer.data_collator.prefix_sharing is choice
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, {name: w.detach() for name, w in trainer.model.named_parameters() if w.requires_grad}

    (one, weights), (other, others) = train(False), train(True)
    assert other == pytest.approx(one, rel=1e-4)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4)
