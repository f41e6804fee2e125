"""Batches of like length, and a token loss that never holds N x V."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

from icrm_lib.language_model.causal import ROWS_PER_CHUNK, batches_of, load_causal_lm, padded, token_nll


def test_a_loaded_model_is_frozen_and_the_same(base_model, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(base_model).eval()
    loaded = load_causal_lm(base_model, device="cpu")
    assert not loaded.training and not any(value.requires_grad for value in loaded.parameters())
    ids = torch.tensor([tokenizer("use kind words")["input_ids"]])
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert load_causal_lm(base_model, device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_batches_hold_at_most_so_many_tokens_and_rows():
    lengths = [10, 20, 30, 9, 60, 8]
    batches = list(batches_of(range(6), lengths, tokens=50))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 50 for b in batches)
    assert max(len(b) for b in batches_of(range(6), lengths, tokens=50, rows=2)) == 2


def test_rows_are_padded_and_masked_on_either_side():
    right, left = (padded([[5, 6, 7], [8]], 9, side=side) for side in ("right", "left"))
    assert right["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert left["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert left["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert right["input_ids"].dtype == right["attention_mask"].dtype == torch.long
    assert padded([[5], [6, 7]], 0, seen=2)["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def parts(n, v, h, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, h, generator=generator).to(dtype).requires_grad_()
    lm_head = torch.randn(v, h, generator=generator).to(dtype).requires_grad_()
    return hidden, lm_head, torch.randint(v, (n,), generator=generator)


@pytest.mark.parametrize("n", [1, ROWS_PER_CHUNK, 2 * ROWS_PER_CHUNK + 7])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_token_loss_and_gradients_equal_the_full_softmax(n, dtype, tolerance):
    hidden, lm_head, targets = parts(n, 61, 8, dtype)
    weights = torch.linspace(0.5, 1.5, n)
    got = token_nll(hidden, lm_head, targets)
    got_gradients = torch.autograd.grad((got.float() * weights).sum(), (hidden, lm_head))
    exact = [value.detach().double().requires_grad_() for value in (hidden, lm_head)]
    want = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none")
    want_gradients = torch.autograd.grad((want * weights).sum(), exact)
    assert got.shape == (n,)
    for a, b in zip((got, *got_gradients), (want, *want_gradients), strict=True):
        scale = b.abs().max().item()
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_a_heads_bias_is_part_of_the_softmax(dtype, tolerance, reduction):
    hidden, lm_head, targets = parts(ROWS_PER_CHUNK + 7, 61, 8, dtype)
    bias = torch.linspace(-3, 3, 61).requires_grad_()  # of another type than the states, as under autocast
    got = token_nll(hidden, lm_head, targets, bias=bias, reduction=reduction)
    gradients = torch.autograd.grad(got.float().mean(), (hidden, lm_head, bias))
    exact = [value.detach().double().requires_grad_() for value in (hidden, lm_head, bias)]
    want = F.cross_entropy(exact[0] @ exact[1].T + exact[2], targets, reduction=reduction)
    for a, b in zip((got, *gradients), (want, *torch.autograd.grad(want.mean(), exact)), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * b.abs().max().item())


def test_token_loss_takes_a_head_of_another_type():
    hidden, lm_head, targets = parts(9, 61, 8)
    got = token_nll(hidden.to(torch.bfloat16), lm_head, targets)
    want = token_nll(hidden, lm_head, targets)
    torch.testing.assert_close(got.float(), want, rtol=5e-2, atol=5e-2)


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that any operation gives, backward pass included."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = (leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor))
        self.elements = max(self.elements, *sizes, 0)
        return result


def elements_saved_and_made(loss_of, n, v):
    hidden, lm_head, targets = parts(n, v, 8)
    saved = [0]
    noted = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t)
    with noted, LargestTensor() as largest:
        loss_of(hidden, lm_head, targets).mean().backward()
    assert hidden.grad is not None and lm_head.grad is not None
    return max(saved), largest.elements


def test_nothing_of_size_n_by_v_is_saved_or_made():
    n, v = 1024, 4096
    saved, made = elements_saved_and_made(token_nll, n, v)
    assert saved < n * v // 10
    assert 0 < made <= ROWS_PER_CHUNK * v
    assert elements_saved_and_made(partial(token_nll, bias=torch.zeros(v)), n, v) == (saved, made)

    def plain(hidden, lm_head, targets):
        return F.cross_entropy(hidden @ lm_head.T, targets, reduction="none")

    assert min(elements_saved_and_made(plain, n, v)) >= n * v  # the measurement sees what it looks for
