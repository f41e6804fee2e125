"""Two processes (gloo, CPU) compute what one does: losses, gradients, S and weights, the uneven last batch included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from icrm_lib.profiles import RewardModelSettings
from icrm_lib.training.fit import shared_batch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch build has no torch.distributed"
)

# float64 and plain gradient descent: what differs is rounding, and Adam does not blow it up.
SCRIPT = """
import json, os, sys
import torch
from datasets import load_from_disk
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from icrm_lib.training.config import ICRMConfig
from icrm_lib.training.trainer import ICRMTrainer

base, data, folder, batch, cases = sys.argv[1:]
rank = int(os.environ.get("RANK", 0))
for name, (rows, terms) in json.loads(cases).items():
    saved = terms.pop("resumed_from", None)
    out = f"{folder}/{name}"
    os.makedirs(out, exist_ok=True)
    args = ICRMConfig(
        output_dir=out, per_device_train_batch_size=int(batch), num_train_epochs=2, learning_rate=0.1, optim="sgd",
        logging_steps=1, report_to="none", save_strategy="steps" if saved else "no", save_steps=saved or 1, bf16=False,
        use_cpu=True, gradient_checkpointing=False, disable_tqdm=True, max_length=None,
        ddp_backend="gloo" if "RANK" in os.environ else None, **terms,
    )
    for start in (None, f"{out}/checkpoint-{saved}") if saved else (None,):
        torch.manual_seed(0)
        trainer = ICRMTrainer(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float64),
            args, train_dataset=load_from_disk(data).select(range(rows)),
            processing_class=AutoTokenizer.from_pretrained(base),
            peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"),
        )
        trainer.model.double()  # PEFT puts LoRA in float32
        trainer.train(resume_from_checkpoint=start)
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    with open(f"{out}/log-{rank}.json", "w") as file:
        json.dump({
            "S": float(trainer.scale.value), "processes": trainer.accelerator.num_processes,
            "norms": [entry["grad_norm"] for entry in log], "losses": [entry["loss"] for entry in log],
        }, file)
    if rank == 0:
        trainer.save_model(out)
trainer.accelerator.end_training()
"""
# Of the last batch of four 13 pairs leave one, and the second process has none of it; 15 leave it one of three.
CASES = {
    "icrm": (13, {"sft_weight": 0.1}),
    "icrm_padding_free": (15, {"sft_weight": 0.1, "padding_free": True}),
    "bradley_terry": (15, {"consistency_weight": 0.0, "sft_weight": 0.0}),
    "centred": (13, {"consistency_weight": 0.0, "sft_weight": 0.0, "center_rewards_coefficient": 0.1}),
    "outcome": (15, {"loss": "outcome", "sft_weight": 0.1}),
    "grm": (13, {"consistency_weight": 0.0, "sft_weight": 0.1, "text_form": "grm_dpo_noref"}),
    "resumed": (13, {"sft_weight": 0.1, "resumed_from": 2}),  # in the middle of the first epoch
    "accumulation": (13, {"gradient_accumulation_steps": 2}),
}


def launch(command, folder, processes):
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ICRM_UNATTENDED": "1"}
    done = subprocess.run([*start, *map(str, command)], env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(base_model, pairs_with_logprobs, tmp_path_factory):
    """Folder with every case trained by one process (`1`) and by two (`2`)."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "train.py").write_text(SCRIPT)
    pairs_with_logprobs.select(range(15)).save_to_disk(str(folder / "data"))
    for processes, batch in ((1, 4), (2, 2)):
        command = [folder / "train.py", base_model, folder / "data", folder / str(processes), batch, json.dumps(CASES)]
        launch(command, folder, processes)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(trained, case):
    first, second = (json.loads((trained / f"2/{case}/log-{rank}.json").read_text()) for rank in (0, 1))
    single = json.loads((trained / f"1/{case}/log-0.json").read_text())
    assert (first["processes"], second["processes"], single["processes"]) == (2, 2, 1)
    assert len(single["norms"]) == (4 if case == "accumulation" else 8)  # two epochs of four batches
    assert first["norms"] == pytest.approx(single["norms"], rel=1e-6)
    assert first["S"] == second["S"] == pytest.approx(single["S"], rel=1e-6)
    assert (single["S"] == 0.5) == (CASES[case][1].get("consistency_weight") == 0.0)
    assert first["losses"] == pytest.approx(single["losses"], rel=1e-5)
    joint, alone = (load_file(trained / f"{n}/{case}/adapter_model.safetensors") for n in (2, 1))
    assert set(joint) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(joint[name], value, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_accelerate_trains_what_was_prepared(tmp_path):
    """The commands of the README, on two CPU processes: refused before the preparation, one model after it."""
    command = ["-m", "icrm_lib.cli.train", "--profile", "smoke", "--preferences", tmp_path / "pairs.jsonl"]
    command += ["--base-model", "scratch"]
    rows = [{"prompt": f"Say {i}", "chosen": f"{i}", "rejected": f"no {i}"} for i in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    project = tmp_path / "project"
    (project / "icrm_lib").mkdir(parents=True)
    for name in ("pyproject.toml", "configs"):
        (project / name).symlink_to(ROOT / name)
    (project / "profiles").mkdir()
    smoke = yaml.safe_load((ROOT / "profiles/smoke.yaml").read_text())
    smoke["base_model"] |= {"steps": 3, "hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 400}
    smoke["reward_model"]["epochs"] = 1
    (project / "profiles/smoke.yaml").write_text(yaml.safe_dump(smoke))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ICRM_UNATTENDED": "1"}
    options = {"env": environment, "capture_output": True, "text": True, "cwd": project}
    several = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/cpu.yaml"]
    refused = subprocess.run([*several, *command], **options)
    assert refused.returncode != 0 and "--prepare" in refused.stderr
    prepared = subprocess.run([sys.executable, *command, "--prepare"], **options)
    assert prepared.returncode == 0, prepared.stderr[-2000:]
    trained = subprocess.run([*several, *command, "--output", "model"], **options)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "2 processes" in trained.stdout and (project / "model/model.safetensors").is_file()
    assert len(list((project / "runs/smoke/artefacts").glob("reward_model-*"))) == 1


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "want"),
    [(2, 6, 1, (2, 6)), (6, 4, 2, (3, 4)), (3, 8, 2, (3, 4)), (4, 3, 2, (2, 3)), (2, 6, 4, None)],
)
def test_processes_share_a_step(batch, accumulation, processes, want):
    settings = RewardModelSettings(batch_size=batch, accumulation=accumulation)
    if want is None:
        with pytest.raises(ValueError, match="4 processes cannot share a step of 6 batches of 2 pairs"):
            shared_batch(settings, processes)
    else:
        assert shared_batch(settings, processes) == want


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_understands_every_config(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    wanted = {"one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED", "cpu": "MULTI_GPU"}
    assert config.distributed_type == wanted[path.stem]
