"""Two processes (gloo, CPU) train as one does: same S on both, same weights as a single process on the joint batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]

SCRIPT = """
import json, os, sys
from datasets import load_from_disk
from peft import LoraConfig
from transformers import AutoTokenizer
from icrm_lib.training import ICRMConfig, ICRMTrainer

base, data, out, batch = sys.argv[1:]
args = ICRMConfig(
    output_dir=out, per_device_train_batch_size=int(batch), max_steps=4, learning_rate=1e-2, logging_steps=1,
    report_to="none", save_strategy="no", bf16=False, use_cpu=True, gradient_checkpointing=False, disable_tqdm=True,
    max_length=None, sft_weight=0.1, ddp_backend="gloo" if "RANK" in os.environ else None,
)
trainer = ICRMTrainer(
    base, args, train_dataset=load_from_disk(data), processing_class=AutoTokenizer.from_pretrained(base),
    peft_config=LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear"),
)
trainer.train()
rank = int(os.environ.get("RANK", 0))
with open(f"{out}/scale-{rank}.json", "w") as file:
    json.dump({"scale": float(trainer.scale.value), "processes": trainer.accelerator.num_processes}, file)
if rank == 0:
    trainer.save_model(out)
"""


def launch(arguments, folder, processes):
    script = folder / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ICRM_UNATTENDED": "1"}
    done = subprocess.run([*command, script, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch build has no torch.distributed")
def test_two_processes_equal_one(base_model, pairs_with_logprobs, tmp_path):
    data = tmp_path / "data"
    pairs_with_logprobs.select(range(16)).save_to_disk(str(data))
    for processes, batch in ((1, 4), (2, 2)):
        out = tmp_path / str(processes)
        out.mkdir()
        launch([base_model, data, out, batch], tmp_path, processes)
    first, second = (json.loads((tmp_path / f"2/scale-{rank}.json").read_text()) for rank in (0, 1))
    single = json.loads((tmp_path / "1/scale-0.json").read_text())
    assert first == second and first["processes"] == 2 and single["processes"] == 1
    assert first["scale"] == pytest.approx(single["scale"], rel=1e-4) and first["scale"] != 0.5
    joint, alone = (load_file(tmp_path / f"{n}/adapter_model.safetensors") for n in (2, 1))
    assert set(joint) == set(alone)
    for name, value in alone.items():
        torch.testing.assert_close(joint[name], value, rtol=1e-2, atol=5e-4)
