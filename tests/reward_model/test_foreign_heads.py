"""Reward heads in the layouts of other tools give their tools' scores; what is not all there is refused by name."""

import json
import logging

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from rows import assistant, user
from safetensors.torch import load_file, save_file
from styles import raw_tokenizer
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.reward_model import RewardModel, load_value_head

TALKS = [[user(question), assistant(reply)] for question in ("An egg?", "A colour.") for reply in ("Blue.", "12 of it")]
KINDS = {
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 1},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128},
    "gpt_neox": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    "bloom": {"n_layer": 2, "n_head": 2},
    "falcon": {},
    "mixtral": {"num_key_value_heads": 1, "num_local_experts": 2},
    "phi": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


def config_of(kind, tokenizer, **more):
    sizes = {} if kind == "gpt2" else {"hidden_size": 32}
    if kind not in ("gpt2", "gpt_neo", "bloom"):
        sizes |= {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    if kind in ("gpt_neo", "bloom", "falcon", "opt"):
        sizes.pop("intermediate_size", None)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": tokenizer.pad_token_id}
    return CONFIG_MAPPING[kind](vocab_size=len(tokenizer), **ids, **sizes, **KINDS[kind], **more)


class Layout:
    """A decoder with random weights, and what its tensors are called."""

    def __init__(self, kind="llama", **more):
        torch.manual_seed(0)
        self.tokenizer = raw_tokenizer("llama3")
        self.config = config_of(kind, self.tokenizer, **more)
        self.body = AutoModel.from_config(self.config).eval()
        self.linear = {"weight": torch.randn(1, 32), "bias": torch.tensor([0.75])}
        self.mlp = {"0.weight": torch.randn(24, 32), "0.bias": torch.randn(24)}
        self.mlp |= {"2.weight": torch.randn(1, 24), "2.bias": torch.randn(1)}
        self.prefix = AutoModelForCausalLM.from_config(self.config).base_model_prefix

    def right(self, head):
        """The head on the last hidden state at the last token, by hand."""
        scores = []
        for talk in TALKS:
            ids = torch.tensor([self.tokenizer.apply_chat_template(talk, return_dict=False)])
            with torch.no_grad():
                hidden = self.body(ids).last_hidden_state[0, -1]
            if "weight" in head:
                scores.append((head["weight"] @ hidden).item() + head.get("bias", torch.zeros(1)).item())
            else:
                inner = torch.relu(head["0.weight"] @ hidden + head["0.bias"])
                scores.append((head["2.weight"] @ inner + head["2.bias"]).item())
        return np.array(scores)

    def save(self, folder, head, prefix=None, before="", **config):
        """Write the tensors: `before` in front of all, `prefix` in front of the decoder's."""
        prefix = f"{self.prefix}." if prefix is None else prefix
        tensors = {before + prefix + name: value for name, value in saved(self.body).items()}
        tensors |= {before + name: value for name, value in head.items()}
        folder.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config.to_dict() | config, default=str))
        self.tokenizer.save_pretrained(folder)
        return folder


def saved(model):
    """A model's tensors as it saves them."""
    return {name: value for name, value in model.state_dict().items() if not name.endswith("inv_freq")}


def named(head, name, bias=True):
    return {f"{name}.{part}": value for part, value in head.items() if bias or "bias" not in part}


def check(folder, right, tmp_path, **options):
    for model in (RewardModel.from_pretrained(folder, **options), RewardModel.from_pretrained(folder, **options)):
        np.testing.assert_allclose(model.score(TALKS), right, atol=2e-4)
    assert np.ptp(right) > 0.02
    assert model.token_rewards(TALKS[0])[-1].reward == pytest.approx(right[0], abs=2e-4)
    model.save_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path / "ours").score(TALKS), right, atol=2e-4)


LINEAR = ["value_head", "v_head", "v_head.summary", "regression_head", "regression_layer", "score", "classifier"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_heads_by_every_name(name, bias, tmp_path):
    layout = Layout()
    head = named(layout.linear, name, bias)
    right = layout.right({part.removeprefix(f"{name}."): value for part, value in head.items()})
    check(layout.save(tmp_path / "m", head), right, tmp_path)


@pytest.mark.parametrize("name", ["score", "v_head.summary"])
def test_heads_of_two_layers(name, tmp_path):
    layout = Layout()
    check(layout.save(tmp_path / "m", named(layout.mlp, name)), layout.right(layout.mlp), tmp_path)


PREFIXES = {
    "DistributedDataParallel": {"before": "module."},
    "torch.compile": {"before": "_orig_mod."},
    "both": {"before": "module._orig_mod."},
    "FSDP": {"prefix": "model._fsdp_wrapped_module."},
    "TRL": {"prefix": "pretrained_model.model."},
    "Starling": {"prefix": "transformer."},
    "bare": {"prefix": ""},
}


@pytest.mark.parametrize("name", ["score", "v_head.summary"])
@pytest.mark.parametrize("wrapper", PREFIXES)
def test_names_that_wrappers_leave(wrapper, name, tmp_path):
    layout = Layout()
    folder = layout.save(tmp_path / "m", named(layout.linear, name), **PREFIXES[wrapper])
    check(folder, layout.right(layout.linear), tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_value_heads_of_every_architecture(kind, tmp_path):
    """Decoders, experts under their old names, as the architecture's own class saves them."""
    layout = Layout(kind)
    causal = AutoModelForCausalLM.from_config(layout.config)
    causal.base_model.load_state_dict(layout.body.state_dict())
    causal.save_pretrained(tmp_path / "m")
    layout.tokenizer.save_pretrained(tmp_path / "m")
    tensors = {f"pretrained_model.{name}": t for name, t in load_file(tmp_path / "m/model.safetensors").items()}
    if kind == "gpt2":  # which older versions saved
        tensors["pretrained_model.transformer.h.0.attn.bias"] = torch.ones(1, 1, 128, 128, dtype=torch.bool)
    if kind == "llama":
        tensors["pretrained_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors | named(layout.linear, "v_head.summary"), tmp_path / "m/model.safetensors")
    check(tmp_path / "m", layout.right(layout.linear), tmp_path)


def test_rewards_that_openrlhf_normalises(tmp_path):
    layout = Layout()
    head = named(layout.linear, "my_head", bias=False)
    plain = layout.right({"weight": layout.linear["weight"]})
    config = {"value_head_prefix": "my_head", "mean": 1.5, "std": 0.5}
    folder = layout.save(tmp_path / "on", head, normalize_reward=True, **config)
    check(folder, (plain - 1.5) / 0.5, tmp_path)
    assert (
        "normalize_reward" not in json.loads((tmp_path / "ours/config.json").read_text())
        or not json.loads((tmp_path / "ours/config.json").read_text())["normalize_reward"]
    )
    check(layout.save(tmp_path / "off", head, normalize_reward=False, **config), plain, tmp_path)
    broken = layout.save(tmp_path / "broken", head, normalize_reward=True, value_head_prefix="my_head", mean=1.0)
    with pytest.raises(ValueError, match="mean is 1.0, std is None; give both"):
        RewardModel.from_pretrained(broken)


def test_a_token_classifier_of_one_label(tmp_path):
    layout = Layout(num_labels=1)
    model = AutoModelForTokenClassification.from_config(layout.config).eval()
    with torch.no_grad():
        model.score.weight.normal_()
        model.score.bias.fill_(2.0)
    model.save_pretrained(tmp_path / "m")
    layout.tokenizer.save_pretrained(tmp_path / "m")
    right = []
    for talk in TALKS:
        ids = torch.tensor([layout.tokenizer.apply_chat_template(talk, return_dict=False)])
        with torch.no_grad():
            right.append(model(ids).logits[0, -1, 0].item())
    check(tmp_path / "m", np.array(right), tmp_path)


def test_other_tools_are_said_to_leave_a_bias_out(tmp_path, caplog):
    layout = Layout()
    model = RewardModel.from_pretrained(layout.save(tmp_path / "m", named(layout.linear, "score")))
    with caplog.at_level(logging.WARNING):
        model.save_pretrained(tmp_path / "ours")
    assert "bias of 0.75" in caplog.text
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    ids = torch.tensor([layout.tokenizer.apply_chat_template(TALKS[0], return_dict=False)])
    with torch.no_grad():
        assert plain(ids).logits.item() + 0.75 == pytest.approx(model.score(TALKS[:1])[0], abs=1e-4)


def test_llama_factorys_head_beside_a_whole_model(tmp_path):
    layout = Layout()
    folder = layout.save(tmp_path / "m", {})
    save_file(named(layout.linear, "v_head.summary"), folder / "value_head.safetensors")
    check(folder, layout.right(layout.linear), tmp_path)


# Refused


def refused(folder, message, **options):
    with pytest.raises(ValueError, match=message) as raised:
        RewardModel.from_pretrained(folder, **options)
    assert "\n" not in str(raised.value)


def test_a_language_model_alone_has_no_head(tmp_path):
    layout = Layout()
    AutoModelForCausalLM.from_config(layout.config).save_pretrained(tmp_path)
    layout.tokenizer.save_pretrained(tmp_path)
    refused(tmp_path, "score.weight is missing for Llama.*drawn at random.*ICRMTrainer starts from")


@pytest.mark.parametrize("name", ["my_reward", "reward.proj"])
def test_a_head_of_an_unknown_name_is_not_taken_for_none(name, tmp_path):
    layout = Layout()
    refused(layout.save(tmp_path / "m", named(layout.linear, name)), rf"'{name}\.(weight|bias)' beside decoder")


def test_missing_other_and_superfluous_weights_are_named(tmp_path):
    layout = Layout()
    head = named(layout.linear, "score", bias=False)
    folder = layout.save(tmp_path / "m", head)
    tensors = load_file(folder / "model.safetensors")
    layer = {name: value for name, value in tensors.items() if ".layers.1." in name}
    save_file({n: v for n, v in tensors.items() if n not in layer}, folder / "model.safetensors")
    refused(folder, r"model\.layers\.1\.\S+, .* and \d more are missing for Llama")
    more = {name.replace("layers.1", "layers.2"): value.clone() for name, value in layer.items()}
    save_file(tensors | more, folder / "model.safetensors")
    refused(folder, r"model\.layers\.2\.\S+, .* without a place in Llama")
    wide = {"model.norm.weight": torch.ones(31)}
    save_file(tensors | wide, folder / "model.safetensors")
    refused(folder, r"model\.norm\.weight is of another shape than Llama")


@pytest.mark.parametrize("name", ["score.norm.weight", "v_head.dense.weight"])
@pytest.mark.parametrize("prefix", [None, ""])
def test_a_tensor_more_in_a_head_is_refused(prefix, name, tmp_path):
    layout = Layout()
    head = named(layout.linear, name.split(".")[0], bias=False) | {name: torch.ones(32)}
    refused(layout.save(tmp_path / "m", head, prefix), f"{name}' beside decoder|{name}.* without a place")


def test_a_padding_id_that_is_no_token_is_none_or_named(tmp_path):
    layout = Layout()
    head = named(layout.linear, "score", bias=False)
    check(
        layout.save(tmp_path / "m", head, pad_token_id=-1), layout.right({"weight": layout.linear["weight"]}), tmp_path
    )
    refused(layout.save(tmp_path / "n", head, pad_token_id=10_000), "no llama can be built by the config.json of n")


def test_openrlhf_reads_at_the_end_under_every_name(tmp_path):
    layout = Layout()
    head, eos = named(layout.linear, "score", bias=False), layout.tokenizer.convert_tokens_to_ids("<|eot_id|>")
    folder = layout.save(tmp_path / "m", head, value_head_prefix="score", normalize_reward=False, pad_token_id=eos)
    check(folder, layout.right({"weight": layout.linear["weight"]}), tmp_path)


def test_files_that_are_damaged_or_named_otherwise(tmp_path):
    layout = Layout()
    folder = layout.save(tmp_path / "m", named(layout.linear, "score", bias=False))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    check(folder, layout.right({"weight": layout.linear["weight"]}), tmp_path)
    whole = (folder / "other.safetensors").read_bytes()
    (folder / "other.safetensors").write_bytes(whole[:40])
    refused(folder, "other.safetensors of m cannot be read .*copy or download it again")
    (folder / "other.safetensors").write_bytes(whole)
    index = {"weight_map": {"score.weight": "gone.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "gone.safetensors of m cannot be read")
    (folder / "model.safetensors.index.json").unlink()
    (folder / "config.json").write_text("{")
    refused(folder, "config.json of m cannot be read")
    layout.save(tmp_path / "n", named(layout.linear, "score"))
    for file in (tmp_path / "n").glob("*token*"):
        file.unlink()
    refused(tmp_path / "n", "n has no tokenizer that can be loaded")
    refused(
        layout.save(tmp_path / "o", named(layout.linear, "score")), "is a whole model; base_model=", base_model="x/y"
    )
    with pytest.raises(FileNotFoundError, match="no directory None"):
        RewardModel.from_pretrained(None)


def test_heads_of_another_shape_are_named(tmp_path):
    layout = Layout()
    two = {"score.weight": torch.randn(2, 32)}
    refused(layout.save(tmp_path / "two", two), "score gives 2 values a token")
    narrow = {"v_head.weight": torch.randn(1, 16)}
    refused(layout.save(tmp_path / "narrow", narrow), r"maps \(1, 16\), the model has hidden states of 32")
    both = named(layout.linear, "score") | {"v_head.summary.weight": torch.randn(1, 32)}
    refused(layout.save(tmp_path / "both", both), "there are 2 reward heads, score and v_head.summary")
    gated = {"regression_layer.weight": torch.randn(19, 32), "gating.layers.0.weight": torch.randn(4, 32)}
    refused(layout.save(tmp_path / "gated", gated), "regression_layer gives 19 values a token")
    deep = named(layout.mlp, "score") | {"score.4.weight": torch.randn(1, 1)}
    refused(layout.save(tmp_path / "deep", deep), "score has the tensors")


def test_architectures_without_code_or_classifier_are_named(tmp_path):
    layout = Layout()
    head = named(layout.linear, "v_head")
    refused(layout.save(tmp_path / "a", head, model_type="internlm2"), "names no architecture that transformers has")
    refused(layout.save(tmp_path / "b", head, model_type="mamba"), "no sequence classification model")


@pytest.mark.parametrize("path", ["no/such/folder", "/no/such", "./none", ""])
def test_a_directory_that_is_not_there_asks_no_hub(path, monkeypatch):
    monkeypatch.setattr("icrm_lib.language_model.loading.snapshot_download", None)
    with pytest.raises(FileNotFoundError, match="no directory"):
        RewardModel.from_pretrained(path)
    with pytest.raises(FileNotFoundError, match="no directory"):
        load_causal_lm(path)


def test_a_hub_that_is_off_is_one_sentence():
    with pytest.raises(FileNotFoundError, match="there is no directory 'nobody/nothing' here") as raised:
        RewardModel.from_pretrained("nobody/nothing")
    assert "\n" not in str(raised.value)


# Adapters


@pytest.fixture
def base(tmp_path):
    """A language model, and what an adapter of it is saved as."""
    layout = Layout()
    causal = AutoModelForCausalLM.from_config(layout.config)
    causal.base_model.load_state_dict(layout.body.state_dict())
    causal.save_pretrained(tmp_path / "base")
    layout.tokenizer.save_pretrained(tmp_path / "base")
    return layout, tmp_path / "base"


def adapted(folder, base, task="SEQ_CLS", head=True, **config):
    """Save a LoRA of a reward model or language model; returns the whole, and the scores it gives."""
    torch.manual_seed(1)
    auto = AutoModelForSequenceClassification if task == "SEQ_CLS" else AutoModelForCausalLM
    options = {"num_labels": 1} if task == "SEQ_CLS" else {}
    lora = LoraConfig(task_type=task, r=4, target_modules="all-linear")
    model = get_peft_model(auto.from_pretrained(base, **options), lora).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_B" in name or "score" in name:
                value.normal_(std=0.3)
    model.save_pretrained(folder)
    if not head:
        tensors = load_file(folder / "adapter_model.safetensors")
        kept = {name: value for name, value in tensors.items() if "score" not in name}
        save_file(kept, folder / "adapter_model.safetensors")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return model


def scores_of(model, layout):
    rows = [torch.tensor([layout.tokenizer.apply_chat_template(talk, return_dict=False)]) for talk in TALKS]
    with torch.no_grad():
        return np.array([model(row).logits.item() for row in rows])


def test_a_good_adapter_loads_without_a_word(base, tmp_path, capfd, recwarn):
    layout, folder = base
    right = scores_of(adapted(tmp_path / "a", folder), layout)
    capfd.readouterr()
    recwarn.clear()
    model = RewardModel.from_pretrained(tmp_path / "a")  # the tokenizer is the base model's
    out = capfd.readouterr()
    assert "MISSING" not in out.err + out.out and "newly initialized" not in out.err + out.out
    assert not [str(w.message) for w in recwarn if "missing" in str(w.message).lower()]
    np.testing.assert_allclose(model.score(TALKS), right, atol=2e-4)


def test_a_base_model_that_has_moved_or_is_not_named(base, tmp_path):
    layout, folder = base
    right = scores_of(adapted(tmp_path / "null", folder, base_model_name_or_path=None), layout)
    refused(tmp_path / "null", "names no base model; give base_model=")
    check(tmp_path / "null", right, tmp_path, base_model=folder)
    adapted(tmp_path / "gone", folder, base_model_name_or_path="/another/machine/base")
    with pytest.raises(FileNotFoundError, match="needs its base model: no directory '/another.*base_model="):
        RewardModel.from_pretrained(tmp_path / "gone")
    check(tmp_path / "gone", right, tmp_path / "2", base_model=str(folder))


def test_an_adapter_without_a_head_is_refused_unless_its_base_has_one(base, tmp_path):
    layout, folder = base
    adapted(tmp_path / "a", folder, head=False)
    refused(tmp_path / "a", r"adapter a has no reward head, and its base model base has none.*modules_to_save")
    adapted(tmp_path / "c", folder, task="CAUSAL_LM")
    refused(tmp_path / "c", "adapter c has no reward head")
    whole = layout.save(tmp_path / "whole", named(layout.linear, "score", bias=False))
    model = adapted(tmp_path / "b", whole, head=False)
    with torch.no_grad():
        model.base_model.model.score.modules_to_save.default.weight.copy_(layout.linear["weight"])
    check(tmp_path / "b", scores_of(model, layout), tmp_path)


def test_an_adapter_on_an_adapter(base, tmp_path):
    layout, folder = base
    causal = adapted(tmp_path / "sft", folder, task="CAUSAL_LM")
    causal.merge_and_unload().save_pretrained(tmp_path / "merged")
    right = scores_of(adapted(tmp_path / "rm", tmp_path / "merged"), layout)
    file = tmp_path / "rm/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "sft")}))
    check(tmp_path / "rm", right, tmp_path / "1")
    adapted(tmp_path / "more", tmp_path / "merged", head=False, base_model_name_or_path=str(tmp_path / "rm"))
    assert RewardModel.from_pretrained(tmp_path / "more").score(TALKS).shape == (4,)  # the head of the inner adapter


def test_an_adapter_with_added_tokens(base, tmp_path):
    layout, folder = base
    layout.tokenizer.add_tokens(["<more>", "<again>"])
    scorer = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    scorer.resize_token_embeddings(len(layout.tokenizer))
    scorer.config.pad_token_id = layout.tokenizer.pad_token_id
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear")
    model = get_peft_model(scorer, lora).eval()
    with torch.no_grad():
        model.base_model.model.score.modules_to_save.default.weight.normal_()
    model.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    layout.tokenizer.save_pretrained(tmp_path / "a")
    talks = [[user("<more>?"), assistant("<again> Blue.")]]
    ids = torch.tensor([layout.tokenizer.apply_chat_template(talks[0], return_dict=False)])
    with torch.no_grad():
        right = model(ids).logits.item()
    assert RewardModel.from_pretrained(tmp_path / "a").score(talks)[0] == pytest.approx(right, abs=1e-3)


def test_an_adapter_pads_as_its_trainer_did(base, tmp_path):
    layout, folder = base
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": None}))
    model = adapted(tmp_path / "a", folder)
    layout.tokenizer.pad_token = "<|eot_id|>"
    layout.tokenizer.save_pretrained(tmp_path / "a")
    model.config.pad_token_id = layout.tokenizer.pad_token_id  # as TRL sets it, which PEFT does not keep
    right = scores_of(model, layout)
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path / "a").score(TALKS), right, atol=2e-4)


def test_adapters_that_cannot_be_merged_or_belong_elsewhere_are_named(base, tmp_path):
    layout, folder = base
    prompt = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    get_peft_model(scorer, prompt).save_pretrained(tmp_path / "prompt")
    refused(tmp_path / "prompt", "kind PROMPT_TUNING, which puts tokens of its own before the text")
    adapted(tmp_path / "a", folder)
    other = Layout("gpt_neox")
    refused(tmp_path / "a", "does not fit GPTNeoX|no place in", base_model=other.save(tmp_path / "o", {}))
    (tmp_path / "a/adapter_config.json").write_text('{"peft_type": "NONE"}')
    refused(tmp_path / "a", "adapter_config.json of a cannot be read")


def test_a_language_models_adapter_is_merged_as_a_base_model(base, tmp_path):
    layout, folder = base
    causal = adapted(tmp_path / "lm", folder, task="CAUSAL_LM")
    ids = torch.tensor([layout.tokenizer.apply_chat_template(TALKS[0], return_dict=False)])
    with torch.no_grad():
        right = causal(ids).logits
    merged = load_causal_lm(tmp_path / "lm", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, right, rtol=1e-3, atol=1e-4)
    save_file(named(layout.linear, "v_head.summary"), tmp_path / "lm/value_head.safetensors")
    with torch.no_grad():
        hidden = [
            causal(
                torch.tensor([layout.tokenizer.apply_chat_template(t, return_dict=False)]), output_hidden_states=True
            )
            for t in TALKS
        ]
    want = [(layout.linear["weight"] @ h.hidden_states[-1][0, -1]).item() + 0.75 for h in hidden]
    np.testing.assert_allclose(load_value_head(tmp_path / "lm").score(TALKS), want, atol=2e-4)


def test_a_causal_model_without_its_head_is_refused(tmp_path):
    layout = Layout(tie_word_embeddings=False)
    folder = layout.save(tmp_path / "m", {})
    with pytest.raises(ValueError, match="lm_head.weight is missing for LlamaForCausalLM"):
        load_causal_lm(folder)
