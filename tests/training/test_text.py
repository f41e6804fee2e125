"""The text term: which output embeddings it reads, where GRM starts, and sums that stay exact."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from icrm_lib.generator import model_scorer
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.training.collation import REFERENCE_COLUMNS
from icrm_lib.training.text import given_lm_head, load_lm_head
from tests.architectures import tiny_classifier, tiny_config, tiny_lm

GRM = {"consistency_weight": 0.0, "sft_weight": 0.2, "text_beta": 0.05}


def test_tied_lm_head_is_read_from_the_checkpoint_where_no_process_has_it_whole(base_model):
    model = AutoModelForCausalLM.from_pretrained(base_model)
    assert torch.equal(load_lm_head(str(base_model)).weight, model.get_input_embeddings().weight)
    model.config.tie_word_embeddings = False
    with pytest.raises(ValueError, match="no lm_head.weight"):
        load_lm_head(str(base_model), config=model.config)


def test_untied_lm_head_is_read_from_the_checkpoint(tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
    model.save_pretrained(tmp_path / "causal")
    assert torch.equal(load_lm_head(str(tmp_path / "causal")).weight, model.lm_head.weight)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "causal", num_labels=1)
    classifier.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="lm_head"):
        load_lm_head(str(tmp_path / "classifier"))


@pytest.mark.parametrize("kind", ["gpt_neox", "phi", "gptj", "gpt2", "opt", "bloom", "llama"])
def test_the_text_term_is_the_causal_models_own_loss(make, pairs_with_logprobs, tokenizer, tmp_path, kind):
    causal_lm = tiny_lm(kind, vocab_size=len(tokenizer))
    causal_lm.save_pretrained(tmp_path / kind)
    trainer = make(pairs_with_logprobs, model=str(tmp_path / kind), sft_weight=1.0)
    trainer.model.eval()
    rows = [trainer.train_dataset[i] for i in range(4)]
    with torch.no_grad():
        trainer.compute_loss(trainer.model, trainer.data_collator(rows))
        want = []
        for row in rows:
            labels = torch.tensor([row["chosen_ids"]])
            logits = causal_lm(labels).logits[0, row["prompt_length"] - 1 : -1].double()
            want.append(F.cross_entropy(logits, labels[0, row["prompt_length"] :]).item())
    assert trainer._metrics["eval"]["sft_loss"] == [pytest.approx(sum(want) / 4, rel=1e-5)]


@pytest.mark.parametrize(
    ("kind", "new", "old"),
    [("gpt_neox", "lm_head.", "embed_out."), ("gpt2", "transformer.", ""), ("codegen", "none", "none")],
)
def test_an_output_layer_is_found_under_the_names_of_hub_checkpoints(kind, new, old, tmp_path):
    """Pythia's files say `embed_out`, GPT-2's leave the prefix out."""
    causal_lm = tiny_lm(kind)
    causal_lm.config.save_pretrained(tmp_path)
    state = {name.removeprefix(new) if old == "" else name.replace(new, old): t for name, t in named(causal_lm)}
    save_file(state, tmp_path / "model.safetensors")
    got, want = load_lm_head(str(tmp_path)), causal_lm.get_output_embeddings()
    assert torch.equal(got.weight, want.weight)
    assert got.bias is None if want.bias is None else torch.equal(got.bias, want.bias)


def named(model):
    return [(name, tensor.clone()) for name, tensor in model.named_parameters()]


def test_a_layer_that_is_given_has_the_bias_of_the_architecture(make, pairs_with_logprobs, tokenizer):
    head = tiny_lm("phi", vocab_size=len(tokenizer)).lm_head
    options = {"model": tiny_classifier("phi", vocab_size=len(tokenizer)), "sft_weight": 1.0}
    trainer = make(pairs_with_logprobs, **options, extra={"lm_head": (head.weight, head.bias)})
    assert torch.equal(trainer.lm_head.bias, head.bias) and not trainer.lm_head.weight.requires_grad
    with pytest.raises(ValueError, match=r"no bias, .*lm_head=\(weight, bias\)"):
        make(pairs_with_logprobs, **options, extra={"lm_head": head.weight})
    with pytest.raises(ValueError, match="a bias, .*lm_head=weight"):
        given_lm_head((head.weight, head.bias), tiny_config("llama"))


def test_the_policy_of_grm_starts_at_its_reference(make, base_model, tokenizer, rich):
    """LoRA starts at zero, so with the base model's sums as reference the text term starts at log 2."""
    scorer = model_scorer(load_causal_lm(base_model, device="cpu"), tokenizer.pad_token_id)
    for ids, name in zip(("chosen_ids", "rejected_ids"), REFERENCE_COLUMNS, strict=True):
        sums = [values.sum() for values in scorer(list(zip(rich[ids], rich["prompt_length"], strict=True)))]
        rich = rich.remove_columns(name).add_column(name, sums)
    trainer = make(rich, **GRM, text_form="grm_dpo", learning_rate=0.0, max_steps=2)
    trainer.train()
    assert trainer.state.log_history[0]["sft_loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_sums_of_log_probabilities_are_not_rounded_to_bfloat16(make, base_model, rich):
    """A mean token loss near 6.6 is known to 1/64 in bfloat16; times 60 tokens that is a nat."""
    trainer = make(rich, **GRM, model_init_kwargs={"dtype": "bfloat16"}, text_form="grm_sft")
    head = load_causal_lm(base_model, device="cpu").lm_head.weight.bfloat16().double()
    inner = trainer.model.get_base_model().model.eval()
    assert inner.dtype == torch.bfloat16
    errors = []
    for row in list(rich)[:8]:
        batch, start = trainer.data_collator([row]), row["prompt_length"]
        ids = batch["input_ids"][:1, : len(row["chosen_ids"])]
        with torch.no_grad():
            trainer.compute_loss(trainer.model, dict(batch))
            logprobs = (inner(ids).last_hidden_state[0].double() @ head.T).log_softmax(-1)
        want = logprobs[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum().item()
        got = trainer._metrics["train" if trainer.model.training else "eval"]["sft_loss"][-1]
        errors.append(abs(-math.log(math.expm1(got)) / 0.05 - want))  # -log sigmoid(x) = got, solved for x
    assert max(errors) < 0.3
