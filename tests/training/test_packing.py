"""Packing: every token once, little padding, and the same losses and gradients as a padded batch."""

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import FAMILIES, save_tiny
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from icrm_lib.preferences import LABEL_KEYS
from icrm_lib.training.collation import STEP_COLUMNS
from icrm_lib.training.packing import MOST_PADDING, packing


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(0, 50))
@settings(deadline=None, max_examples=200)
def test_packing_holds_every_token_once_and_rows_in_one_piece(lengths, more):
    width = max(lengths) + more
    pack = packing(lengths, width)
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
    assert packing([5, 5, 5], 7).tolist() == [[row * 7 + column for column in range(5)] for row in range(3)]


def test_kernels_that_know_of_packing_get_one_row():
    pack = packing([5, 3, 9], 9, one_row=True)
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
            row[f"{side}_label"] = float(side == "chosen")
        result.append(row)
    assert set(LABEL_KEYS + STEP_COLUMNS) <= set(result[0])
    return result


@pytest.fixture
def loss_and_gradients(family, make):
    def loss_and_gradients(padding_free, **settings):
        tokenizer = AutoTokenizer.from_pretrained(family)
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(family, num_labels=1, dtype=torch.float64)
        data = Dataset.from_list(rows())
        options = settings | {"padding_free": padding_free}
        trainer = make(data, model=model, tokenizer=tokenizer, lora=False, **options)
        trainer.model.train()
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(3)])
        assert ("pack" in batch) == padding_free
        places = batch["pack"].numel() if padding_free else batch["input_ids"].numel()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        return loss.detach(), gradients, metrics, places

    return loss_and_gradients


@pytest.mark.parametrize("method", METHODS)
def test_padding_free_changes_nothing_but_the_layout(loss_and_gradients, method):
    padded, gradients, metrics, places = loss_and_gradients(False, **METHODS[method])
    packed, others, again, fewer = loss_and_gradients(True, **METHODS[method])
    assert fewer < 0.7 * places
    # In float64 but for Gemma's and Qwen's norms, the text term and the metrics.
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=1e-8)
    assert set(gradients) == set(others)
    for name, value in gradients.items():
        torch.testing.assert_close(others[name], value, rtol=1e-4, atol=1e-5 * float(value.abs().max()))
    shared = sorted(set(metrics) & set(again))
    assert len(shared) >= 5
    assert [again[name] for name in shared] == pytest.approx([metrics[name] for name in shared], rel=1e-5, abs=1e-7)
