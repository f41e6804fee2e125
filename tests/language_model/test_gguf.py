"""A model in a GGUF file becomes a plain directory: same tokens, same logits; what is not known is refused."""

import json

import numpy as np
import pytest
import torch

from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.tokenization import load_tokenizer

gguf = pytest.importorskip("gguf", reason="gguf is installed for `make real` alone")
from icrm_lib.language_model.gguf import convert_gguf  # noqa: E402

HIDDEN, HEADS, LAYERS = 64, 2, 2
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # as GPT-2 writes them; the others come after 255


def words():
    """A byte-level vocabulary with one merge of digits, which the rule of SmolLM never lets happen."""
    letters = [chr(c) for c in BYTES] + [chr(256 + i) for i in range(256 - len(BYTES))]
    return ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "12", "Ġa"]


@pytest.fixture
def write(tmp_path):
    """Write a tiny random Llama as GGUF, most of its weights in four bits."""

    def write(rule="smollm", kind="gpt2"):
        folder = tmp_path / rule
        folder.mkdir()
        writer, rng = gguf.GGUFWriter(folder / "tiny.gguf", "llama"), np.random.default_rng(0)
        vocabulary = words()
        writer.add_block_count(LAYERS)
        writer.add_context_length(128)
        writer.add_embedding_length(HIDDEN)
        writer.add_feed_forward_length(2 * HIDDEN)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(HEADS)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(len(vocabulary))
        writer.add_tokenizer_model(kind)
        writer.add_tokenizer_pre(rule)
        writer.add_token_list(vocabulary)
        writer.add_token_types([3] * 3 + [1] * (len(vocabulary) - 3))
        writer.add_token_merges(["1 2", "Ġ a"])
        for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
            getattr(writer, f"add_{name}_token_id")(number)

        def add(name, *shape, quantised=True):
            values = rng.normal(scale=0.3, size=shape).astype(np.float32)
            if len(shape) == 1 or not quantised:
                writer.add_tensor(name, values + (1.0 if len(shape) == 1 else 0.0))
            else:
                packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_1)
                writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)

        add("token_embd.weight", len(vocabulary), HIDDEN)
        add("output_norm.weight", HIDDEN)
        for layer in range(LAYERS):
            for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
                add(f"blk.{layer}.{part}.weight", HIDDEN, HIDDEN)
            add(f"blk.{layer}.ffn_gate.weight", 2 * HIDDEN, HIDDEN)
            add(f"blk.{layer}.ffn_up.weight", 2 * HIDDEN, HIDDEN)
            add(f"blk.{layer}.ffn_down.weight", HIDDEN, 2 * HIDDEN)
            add(f"blk.{layer}.attn_norm.weight", HIDDEN)
            add(f"blk.{layer}.ffn_norm.weight", HIDDEN)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return folder / "tiny.gguf"

    return write


def test_it_becomes_a_directory_that_the_strict_loaders_take(write, tmp_path):
    file = write()
    convert_gguf(file, tmp_path / "model")
    model, tokenizer = load_causal_lm(tmp_path / "model", device="cpu"), load_tokenizer(tmp_path / "model")
    assert model.config.num_hidden_layers == LAYERS and "quantization_config" not in model.config.to_dict()
    assert tokenizer.convert_ids_to_tokens(range(len(words()))) == words()
    assert json.loads((tmp_path / "model/config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    logits = model(input_ids=torch.tensor([[4, 5, 6]])).logits
    assert logits.isfinite().all() and logits.std() > 0


def test_digits_stand_alone_where_the_file_s_rule_says_so(write, tmp_path):
    for rule, tokens in (("smollm", ["1", "2", "Ġa"]), ("gpt-2", ["12", "Ġa"])):
        convert_gguf(write(rule), tmp_path / f"{rule}-model")
        assert load_tokenizer(tmp_path / f"{rule}-model").tokenize("12 a") == tokens


@pytest.mark.parametrize(("rule", "kind"), [("llama-bpe", "gpt2"), ("smollm", "llama")])
def test_a_tokenizer_of_unknown_rules_is_refused(write, tmp_path, rule, kind):
    with pytest.raises(ValueError, match=f"tiny.gguf is of kind '{kind}' and cuts by the rule '{rule}'"):
        convert_gguf(write(rule, kind), tmp_path / "model")
