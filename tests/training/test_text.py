"""The text term: which output embeddings it reads, where GRM starts, and sums that stay exact."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from icrm_lib.generator import model_scorer
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.training.collation import REFERENCE_COLUMNS
from icrm_lib.training.text import load_lm_head

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
