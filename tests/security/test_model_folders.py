"""A model's folder holds weights and values: its pickles, its code and its template run nothing."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import micro
from transformers import AutoModelForSequenceClassification

from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.methods import method_settings
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.reward_model import RewardModel, load_value_head
from icrm_lib.reward_model.head import add_mlp_head
from icrm_lib.reward_model.loading import load_reward_model
from icrm_lib.training.fit import train_reward_model

MINE = micro("mine", data={"preferences": "own.jsonl"}, generator={"kind": "base"})


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return os.mkdir, (str(self.sprung),)


@pytest.fixture(scope="module")
def kinds(base_model, tokenizer, tmp_path_factory):
    """One folder for each way to keep a model."""
    top = tmp_path_factory.mktemp("kinds")

    def start():
        return AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1)

    shutil.copytree(base_model, top / "model")
    RewardModel(add_mlp_head(start(), 8), tokenizer).save_pretrained(top / "mlp")
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules="all-linear", modules_to_save=["score"])
    RewardModel(get_peft_model(start(), lora), tokenizer).save_pretrained(top / "adapter", adapter_only=True)
    return top


def pickled(folder: Path, name: str, target: Path, sprung: Path) -> Path:
    """Copy a model with a trap in place of its weights."""
    shutil.copytree(folder, target)
    for file in target.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": Trap(sprung)}, target / name)
    return target


def test_the_trap_works(tmp_path):
    torch.save(Trap(tmp_path / "caught"), tmp_path / "trap.bin")
    torch.load(tmp_path / "trap.bin", weights_only=False)
    assert (tmp_path / "caught").is_dir()


@pytest.mark.parametrize(
    ("kind", "load"),
    [
        ("model", load_causal_lm),
        ("model", RewardModel.from_pretrained),
        ("mlp", RewardModel.from_pretrained),
        ("adapter", RewardModel.from_pretrained),
        ("adapter", lambda path: load_reward_model(path)),
        ("adapter", load_causal_lm),  # transformers itself looks for an adapter, too
        ("adapter", load_value_head),
        ("model", load_value_head),
        ("model", lambda path: Workspace(MINE, base_model=path).base_model),
        ("adapter", lambda path: Workspace(MINE, base_model=path).base_model),
    ],
)
def test_pickled_weights_are_refused_with_the_remedy(kinds, kind, load, tmp_path, sprung):
    name = "adapter_model.bin" if kind == "adapter" else "pytorch_model.bin"
    with pytest.raises(ValueError, match=rf"{name}.*pickles, which may run any code.*(save_pretrained|save_file)"):
        load(pickled(kinds / kind, name, tmp_path / "pickled", sprung))


def test_pickles_beside_something_safe_are_refused(kinds, tmp_path, sprung):
    """An adapter whose base model is pickled; and a value head in safetensors on an adapter or a base that is not."""
    base = pickled(kinds / "model", "pytorch_model.bin", tmp_path / "base", sprung)
    adapter = shutil.copytree(kinds / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    head = {"v_head.summary.weight": torch.ones(1, 32)}
    on_adapter = pickled(kinds / "adapter", "adapter_model.bin", tmp_path / "on_adapter", sprung)
    save_file(head, on_adapter / "value_head.safetensors")
    save_file(head, base / "value_head.safetensors")
    asks = replace(MINE, generator=replace(MINE.generator, model=str(base)))
    for load in (
        lambda: RewardModel.from_pretrained(adapter),
        lambda: load_reward_model(adapter),
        lambda: load_value_head(on_adapter, base_model=kinds / "model"),
        lambda: load_value_head(base, base_model=base),
        lambda: Workspace(asks, base_model="a/b").generator,
    ):
        with pytest.raises(ValueError, match="_model.bin.*pickles, which may run any code.*save_pretrained"):
            load()


@pytest.mark.parametrize("method", ["bt", "frozen_mlp"])
def test_training_starts_from_no_pickle(kinds, method, tokenizer, pairs, tmp_path, sprung):
    base = pickled(kinds / "model", "pytorch_model.bin", tmp_path / "base", sprung)
    settings = method_settings(RewardModelSettings(), method)
    with pytest.raises((ValueError, OSError), match="safetensors"):
        train_reward_model(base, tokenizer, pairs, settings, folder=tmp_path / "run", seed=0)


def with_code(folder: Path, target: Path, sprung: Path, **changes: str) -> Path:
    """Copy a model with a Python file that its configurations say is to be run."""
    shutil.copytree(folder, target)
    code = "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast"
    (target / "code.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n{code}\n")
    models = dict.fromkeys(("AutoModelForCausalLM", "AutoModelForSequenceClassification"), "code.LlamaForCausalLM")
    for name, auto_map in (
        ("config.json", {"AutoConfig": "code.LlamaConfig", **models}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "code.PreTrainedTokenizerFast"]}),
    ):
        file = target / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": auto_map} | changes))
    return target


@pytest.mark.parametrize(
    "load",
    [
        load_causal_lm,
        RewardModel.from_pretrained,
        lambda path: load_value_head(path / "head", base_model=path),
        lambda path: Workspace(MINE, base_model=path).tokenizer,
    ],
    ids=["load_causal_lm", "RewardModel", "load_value_head", "Workspace.tokenizer"],
)
def test_a_folders_own_code_is_not_run(base_model, load, tmp_path, sprung, monkeypatch, request):
    """Of a known kind, transformers' own code is taken; of another one, the folder is refused, and nobody is asked.

    A tokenizer is what its tokenizer.json says, of whatever kind.
    """
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    for name, changes in (("known", {}), ("unknown", {"model_type": "mine", "tokenizer_class": "Mine"})):
        folder = with_code(base_model, tmp_path / name, sprung, **changes)
        weights = load_file(folder / "model.safetensors") | {"score.weight": torch.ones(1, 32)}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "head").mkdir()
        save_file({"v_head.summary.weight": torch.ones(1, 32)}, folder / "head/value_head.safetensors")
        if changes and "tokenizer" not in request.node.callspec.id:
            with pytest.raises(ValueError, match="custom code"):
                load(folder)
        else:
            load(folder)


def test_a_chat_template_reaches_nothing(base_model, tmp_path, sprung):
    folder = shutil.copytree(base_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors") | {"score.weight": torch.ones(1, 32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    reach = "{{ cycler.__init__.__globals__.os.mkdir('" + str(sprung) + "') }}"
    (folder / "chat_template.jinja").write_text(reach + "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(Exception, match="unsafe|safely"):
        talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
        RewardModel.from_pretrained(folder).score([talk])
