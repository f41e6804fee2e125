"""What a plan foretells: against closed formulas, against itself, and against a training that is measured."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from huggingface_hub import scan_cache_dir
from transformers import LlamaConfig

from icrm_lib import runtime
from icrm_lib.methods import METHODS, method_settings
from icrm_lib.plan import simulation
from icrm_lib.plan import stages as plan
from icrm_lib.plan.simulation import Cost, generator_fit_cost, generator_pass_cost, reward_model_cost, sampling_cost
from icrm_lib.profiles import GeneratorSettings, Profile, RewardModelSettings, known_profiles

# Counted by hand from the public config.json: a causal language model with its output embeddings.
COUNTS = {
    # 256000 * 2048, tied + 18 * (2 * 2048^2 + 2 * 2048 * 256 + 3 * 2048 * 16384 + 2 * 2048) + 2048
    "google/gemma-2b-it": 2_506_172_416,
    # 2 * 128256 * 4096 + 32 * (2 * 4096^2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096) + 4096
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    # 151936 * 1536, tied + 28 * (2 * 1536^2 + 1536 + 2 * (1536 * 256 + 256) + 3 * 1536 * 8960 + 2 * 1536) + 1536
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    # 2 * 152064 * 3584 + 28 * (2 * 3584^2 + 3584 + 2 * (3584 * 512 + 512) + 3 * 3584 * 18944 + 2 * 3584) + 3584
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
}
PLAIN = RewardModelSettings(lora_rank=4, batch_size=4, consistency_weight=0.0, sft_weight=0.0)
FLOAT = {"max_length": 64, "length": 64, "bf16": False}


def tiny(layers: int = 2, **more) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaConfig(**{**sizes, "vocab_size": 500, "num_hidden_layers": layers, "tie_word_embeddings": True, **more})


def without_training(name: str) -> Cost:
    return generator_pass_cost(plan.model_config(name), GeneratorSettings(), max_length=8192, length=8, bf16=True)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_those_of_the_published_model(name):
    cost = without_training(name)
    assert (cost.parameters, cost.trainable) == (COUNTS[name], 0)


def test_all_architectures_have_a_count():
    assert set(COUNTS) == set(plan.ARCHITECTURES)


def test_what_lora_trains():
    config = plan.model_config("google/gemma-2b-it")
    settings = replace(PLAIN, lora_rank=32, batch_size=1)
    cost = reward_model_cost(config, settings, max_length=8, length=8, bf16=True)
    # r (in + out) of q, k, v, o, gate, up, down, and the head
    of_layer = 32 * (4096 + 2304 + 2304 + 4096 + 3 * (2048 + 16384))
    assert cost.trainable == 18 * of_layer + 2048
    # PEFT keeps the head it was given next to the one it trains.
    assert cost.parameters == COUNTS["google/gemma-2b-it"] + 2048 + cost.trainable


# FLOPs -----------------------------------------------------------------------------------------------------


def test_flops_of_a_pass_are_the_closed_formula():
    layers, width, length = 2, 32, 64
    cost = generator_pass_cost(tiny(layers), GeneratorSettings(), **FLOAT)
    linear = layers * (4 * width**2 + 3 * width * 128)  # weights of the linear layers
    attention = 2 * 2 * length**2 * width * layers  # scores and their mean over the values, no half for causality
    # Logits: one position for `logits_to_keep`, then every predicted one.
    logits = 2 * width * 500 * (1 + length - 1)
    assert cost.flops == 2 * linear * length + attention + logits


def test_flops_of_a_training_step_are_the_closed_formula():
    layers, width, length, rank = 2, 32, 64, 4
    cost = reward_model_cost(tiny(layers), PLAIN, **FLOAT)
    linear = layers * (4 * width**2 + 3 * width * 128)
    adapter = layers * rank * (4 * 2 * width + 3 * (width + 128))
    attention = 2 * length**2 * width * layers  # one product of T x T x H
    forward = 2 * (linear + adapter + width) * length + 2 * attention
    # Frozen weights need the gradient of their inputs only, LoRA and head that of the weights, too. The first layer's
    # inputs need none: not those of q, k, v, whose LoRA A is thus spared it as well. Attention: five products back.
    first = 3 * width**2 + 3 * rank * width
    backward = 2 * (linear + 2 * adapter + 2 * width - first) * length + 5 * attention
    assert cost.flops == forward + backward


def test_the_text_term_costs_three_products_with_the_vocabulary_a_pair():
    plain = reward_model_cost(tiny(), PLAIN, **FLOAT).flops
    text = reward_model_cost(tiny(), replace(PLAIN, sft_weight=0.001), **FLOAT).flops
    # Logits and gradient of the chosen row's 63 predicted tokens; a pair has two rows.
    assert text - plain == 2 * 2 * 63 * 32 * 500 / 2


def test_a_deep_model_is_continued_exactly(monkeypatch):
    settings = replace(PLAIN, sft_weight=0.001, consistency_weight=0.1, gradient_checkpointing=True)
    fast = reward_model_cost(tiny(7), settings, **FLOAT)
    monkeypatch.setattr(simulation, "DEPTH", 100)
    whole = reward_model_cost(tiny(7), settings, **FLOAT)
    assert fast.flops == pytest.approx(whole.flops, rel=1e-9)
    assert fast.peak_bytes == pytest.approx(whole.peak_bytes, rel=1e-3)


# Memory ----------------------------------------------------------------------------------------------------


def peak(config: LlamaConfig | None = None, length: int = 64, bf16: bool = False, **changes) -> float:
    settings = replace(PLAIN, **changes)
    return reward_model_cost(config or tiny(2), settings, max_length=length, length=8, bf16=bf16).peak_bytes


def test_memory_grows_with_batch_length_and_depth():
    usual = peak()
    assert peak(batch_size=2) < usual < peak(batch_size=8)
    assert peak(length=32) < usual < peak(length=128)
    assert peak(tiny(1)) < usual < peak(tiny(3))


def test_checkpointing_bfloat16_and_a_frozen_backbone_need_less():
    usual = peak(tiny(4))
    assert peak(tiny(4), gradient_checkpointing=True) < 0.6 * usual
    assert peak(tiny(4), bf16=True) < 0.8 * usual
    assert peak(tiny(4), frozen_backbone=True) < 0.5 * usual


def test_checkpointing_computes_the_layers_twice():
    costs = [reward_model_cost(tiny(), replace(PLAIN, gradient_checkpointing=on), **FLOAT) for on in (False, True)]
    assert 1.25 < costs[1].flops / costs[0].flops < 1.5


def test_accumulation_keeps_gradients_beside_activations():
    settings = replace(PLAIN, lora_rank=16)
    costs = [reward_model_cost(tiny(), replace(settings, accumulation=n), **FLOAT) for n in (1, 4)]
    assert costs[0].peak_bytes < costs[1].peak_bytes <= costs[0].peak_bytes + 4 * costs[0].trainable


def test_an_untied_head_is_held_for_the_text_term():
    config = tiny(tie_word_embeddings=False, vocab_size=50000)
    more = peak(config, sft_weight=0.001) - peak(config)
    assert more >= 4 * 50000 * 32


def test_memory_of_a_pass_is_weights_logits_and_little_else():
    config = tiny(vocab_size=50000)
    cost = generator_pass_cost(config, GeneratorSettings(), max_length=256, length=8, bf16=False)
    assert (cost.rows, cost.row_tokens) == (64, 256)
    assert cost.peak_bytes > 4 * (cost.parameters + 128 * 50000)


def test_a_nucleus_sorts_the_logits():
    config = tiny(vocab_size=50000)
    with_nucleus = generator_pass_cost(config, GeneratorSettings(top_p=0.8), **FLOAT)
    assert with_nucleus.peak_bytes > generator_pass_cost(config, GeneratorSettings(), **FLOAT).peak_bytes


def test_sampling_holds_keys_and_values():
    costs = [sampling_cost(tiny(4), rows=4, max_length=length, length=8, bf16=True) for length in (1000, 2000)]
    cache = 2 * 4 * 4 * 32 * 2 * 1000  # keys and values, rows, layers, width, bytes, tokens
    assert costs[1].peak_bytes - costs[0].peak_bytes == pytest.approx(cache, rel=0.3)  # a layer's is copied to grow


def test_fitting_the_generator_follows_its_settings():
    settings = GeneratorSettings(lora_rank=4, batch_size=4)
    full = generator_fit_cost(tiny(), settings, **FLOAT)
    checkpointed = generator_fit_cost(tiny(), replace(settings, gradient_checkpointing=True), **FLOAT)
    assert full.rows == 8 and full.trainable == 2 * 4 * (4 * 64 + 3 * 160)
    assert checkpointed.peak_bytes < full.peak_bytes and checkpointed.flops > full.flops


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_planned(method):
    settings = method_settings(RewardModelSettings(lora_rank=4, batch_size=2, mlp_size=16), method)
    cost = reward_model_cost(tiny(), settings, **FLOAT)
    assert 0 < cost.trainable < cost.parameters and cost.flops > 0 and cost.peak_bytes > 4 * cost.parameters


@pytest.mark.slow
def test_peak_memory_is_within_a_fifth_of_the_measured_one():
    code = (
        "import sys, json, argparse; sys.path.insert(0, 'benchmarks')\n"
        "from plan_memory import measured, planned\n"
        "args = argparse.Namespace(pairs=8, length=128, steps=2)\n"
        "what = 'tiny', True\n"  # with checkpointing; benchmarks/plan_memory.py has more sizes, and without
        "print(json.dumps([planned(*what, args), measured(*what, True, args)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=runtime.project_root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    foretold, real = json.loads(done.stdout.splitlines()[-1])
    assert 0.8 < foretold / real < 1.2


# The plan --------------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    import socket

    def refuse(*args, **kwargs):
        raise AssertionError("a plan asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.slow
@pytest.mark.parametrize("profile", known_profiles())
def test_every_profile_is_planned_without_network(profile, no_network):
    made = plan.make_plan(profile, device="80")
    names = [stage["stage"] for stage in made["stages"]]
    assert names[-2:] == ["generator pass", "reward model"]
    assert ("sampling" in names) == (profile == "qwen2.5-1.5b-math")
    assert ("generator fit" in names) == (profile != "qwen2.5-1.5b-math")
    assert ("base model" in names) == (profile in ("smoke", "lab"))
    assert all(stage["peak_gib"] > 0 and stage["hours"] > 0 and stage["fits"] == "yes" for stage in made["stages"])
    assert made["hours"] == pytest.approx(sum(stage["hours"] for stage in made["stages"]))
    text = plan.describe(made)
    assert all(len(line) <= 130 for line in text.splitlines()) and "GiB" in text
    assert all(file["name"] in text for file in made["files"])
    if profile == "llama3-8b-skywork":  # the LM head is downloaded, though no reward model has one
        assert made["files"][0]["bytes"] == pytest.approx(2 * COUNTS[made["files"][0]["name"]], rel=1e-5)


def test_the_command_prints_one_json_object(capsys):
    assert plan.main(["--profile", "smoke", "--device", "24", "--method", "bt", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert set(made) == {
        *("profile", "method", "device", "data", "stages", "hours", "files", "artefacts", "notes", "assumed")
    }
    assert set(made["stages"][0]) == {
        *("stage", "model", "parameters", "trainable", "rows", "row_tokens", "tokens", "flops", "peak_gib", "hours"),
        "fits",
    }
    assert [stage["stage"] for stage in made["stages"]] == ["base model", "reward model"]  # bt asks no generator
    assert made["files"] == []


def test_smoke_on_this_machine(capsys):
    assert plan.main(["--profile", "smoke"]) == 0
    assert "generator fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "32"], "unknown device '32'; choose 24, 48, 80, 141"),
        (["--profile", "smok"], "did you mean 'smoke'?"),
        (["--device", "24", "--method", "icrn"], "did you mean 'icrm'?"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, message, capsys):
    assert plan.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_model_needs_its_configuration():
    with pytest.raises(ValueError, match="no configuration of 'somebody/unheard-of' .* run `hf download"):
        plan.model_config("somebody/unheard-of")


def test_a_directory_is_read(tmp_path):
    tiny(3).save_pretrained(tmp_path)
    assert plan.model_config(str(tmp_path)).num_hidden_layers == 3
    with pytest.raises(ValueError, match="no model in the directory"):
        (tmp_path / "empty").mkdir()
        plan.model_config(str(tmp_path / "empty"))


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """A hub cache that holds the configuration of one model, and weights of another."""
    for name, file in (("known", "config.json"), ("whole", "model.safetensors")):
        folder = tmp_path / f"models--somebody--{name}"
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        (folder / "blobs").mkdir()
        (folder / "blobs" / "1").write_bytes(b"0" * 1000)
        (folder / "snapshots" / ("0" * 40) / file).symlink_to(folder / "blobs" / "1")
    monkeypatch.setattr(plan, "scan_cache_dir", lambda: scan_cache_dir(tmp_path))


def test_what_is_cached_and_what_is_to_download(hub_cache, monkeypatch):
    asked = []
    monkeypatch.setattr(plan, "_published_size", lambda name, kind: asked.append(name) or 3000)
    assert plan._file("somebody/whole", "model", 2000) | {"kind": ""} == {
        **{"name": "somebody/whole", "kind": "", "here": True, "bytes": 1000, "exact": True}
    }
    monkeypatch.setattr(plan.constants, "HF_HUB_OFFLINE", True)
    offline = plan._file("somebody/known", "model", 2000)
    assert (offline["here"], offline["bytes"], offline["exact"], asked) == (False, 2000, False, [])
    assert plan._file_line(offline).endswith("to download, about 0 MiB")
    monkeypatch.setattr(plan.constants, "HF_HUB_OFFLINE", False)
    online = plan._file("somebody/known", "model", 2000)
    assert (online["here"], online["bytes"], online["exact"]) == (False, 3000, True)


def test_artefacts_are_counted_by_noun(tmp_path, monkeypatch):
    for name in ("generator-0123456789abcdef", "reward_model-01", "reward_model-02", "samples-03.jsonl"):
        (tmp_path / "runs" / "smoke" / "artefacts" / name).mkdir(parents=True)
    monkeypatch.setattr(plan.runtime, "project_root", lambda: tmp_path)
    assert plan.artefacts(Profile("smoke")) == {"generator": 1, "reward_model": 2, "samples": 1}
    assert plan.artefacts(Profile("lab")) == {}


def test_room_is_left_for_the_allocator():
    card = plan.DEVICES["24"]
    assert [plan.fits(peak, card) for peak in (20.0, 22.5, 23.5)] == ["yes", "barely", "no"]


def test_pairs_follow_the_stride():
    profiles = [plan.load_profile(name) for name in ("gemma-2b-40k", "gemma-2b-400k")]
    assert [plan.expected_data(profile)["pairs"] for profile in profiles] == [42_400, 424_000]


def test_tokens_unknown_are_an_upper_bound():
    profile = plan.load_profile("gemma-2b-40k")
    own = replace(profile, data=replace(profile.data, preferences="own.jsonl", expected_tokens=0, train_pairs=100))
    data = plan.expected_data(own)
    assert (data["pairs"], data["tokens"]) == (100, 2048)
    assert data["pairs_are"] == "at most" and data["tokens_are"].startswith("at most")
