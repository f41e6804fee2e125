"""Two processes (gloo, CPU) compute what one does: losses, gradients, S and weights, the uneven last batch included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import distributed_driver
import pytest
import torch
import yaml
from distributed_driver import CASES
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ICRM_UNATTENDED": "1"}
pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch build has no torch.distributed"
)


@pytest.fixture(scope="module")
def trained(base_model, pairs_with_logprobs, tmp_path_factory):
    """Folder with every case trained by one process (`1`) and by two (`2`)."""
    folder = tmp_path_factory.mktemp("distributed")
    pairs_with_logprobs.select(range(15)).save_to_disk(str(folder / "data"))
    distributed_driver.train_all(base_model, folder / "data", folder / "1", 4)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [distributed_driver.__file__, base_model, folder / "data", folder / "2", 2]
    done = subprocess.run(list(map(str, command)), env=ENVIRONMENT, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
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
    options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "cwd": project}
    several = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "configs/cpu.yaml"]
    refused = subprocess.run([*several, *command], **options)
    assert refused.returncode != 0 and "--prepare" in refused.stderr
    prepared = subprocess.run([sys.executable, *command, "--prepare"], **options)
    assert prepared.returncode == 0, prepared.stderr[-2000:]
    trained = subprocess.run([*several, *command, "--output", "model"], **options)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "2 processes" in trained.stdout and (project / "model/model.safetensors").is_file()
    assert len(list((project / "runs/smoke/artefacts").glob("reward_model-*"))) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_understands_every_config(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    wanted = {"one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp": "FSDP", "zero3": "DEEPSPEED", "cpu": "MULTI_GPU"}
    assert config.distributed_type == wanted[path.stem]
