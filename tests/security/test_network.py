"""No network in profile smoke, no telemetry."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Python's sockets reach this machine and nothing else; every attempt is noted. (Kernels are spoken to on loopback.
# What a compiled library opens by itself is not seen.)
NO_NETWORK = """
import os, socket

def refuse(what):
    with open(os.environ["ATTEMPTS"], "a") as file:
        file.write(f"{what}\\n")
    raise OSError(f"no network in this test: {what}")

def here(address):
    return not isinstance(address, tuple) or str(address[0]) in ("localhost", "::1", "0.0.0.0", "") or str(
        address[0]).startswith("127.")

def guarded(function, where):
    def call(*args, **kwargs):
        address = kwargs.get("host", args[where] if len(args) > where else None)
        if address is not None and not here(address if isinstance(address, tuple) else (address,)):
            refuse(f"{function.__name__} {address}")
        return function(*args, **kwargs)
    return call

class Guarded(socket.socket):
    def connect(self, address):
        return super().connect(address) if here(address) else refuse(f"connect {address}")
    def connect_ex(self, address):
        return super().connect_ex(address) if here(address) else refuse(f"connect_ex {address}")
    def sendto(self, data, *rest):
        return super().sendto(data, *rest) if here(rest[-1]) else refuse(f"sendto {rest[-1]}")

socket.socket = Guarded
socket.getaddrinfo = guarded(socket.getaddrinfo, 0)
socket.gethostbyname = guarded(socket.gethostbyname, 0)
socket.create_connection = guarded(socket.create_connection, 0)
"""
PIPELINE = """
from icrm_lib.lab.workspace import Workspace
from icrm_lib.reward_model import RewardModel
from icrm_lib.language_model.causal import load_causal_lm
from tiny import micro
workspace = Workspace(micro(reward_model={"save_steps": 1}), folder="artefacts")
model = workspace.reward_model("icrm")
print(model.score(workspace.conversations("test")["chosen"]).shape)
load_causal_lm(workspace.base_model)
"""
SET_BY_TESTS = ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "CI")


def without_network(command: list[str], folder: Path, **more: str) -> tuple[subprocess.CompletedProcess, str]:
    """Run a command with nothing but the kit's own settings; returns what it tried to reach, too."""
    (folder / "guard").mkdir(exist_ok=True)
    (folder / "guard/sitecustomize.py").write_text(NO_NETWORK)
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_TESTS}
    path = os.pathsep.join([str(folder / "guard"), str(ROOT), str(ROOT / "tests")])
    environment |= {"PYTHONPATH": path, "ATTEMPTS": str(folder / "attempts"), "HF_HOME": str(folder / "hub"), **more}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done, (folder / "attempts").read_text() if (folder / "attempts").exists() else ""


def test_the_guard_works(tmp_path):
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    done, attempts = without_network([sys.executable, "-c", code], tmp_path)
    assert done.returncode and "192.0.2.1" in attempts
    code = "import urllib.request; urllib.request.urlopen('http://example.org')"
    assert "example.org" in without_network([sys.executable, "-c", code], tmp_path)[1]


def test_the_pipeline_asks_nobody(tmp_path):
    """In one's own code: no hub switched off, nothing set but what the package sets when it is imported."""
    done, attempts = without_network([sys.executable, "-c", PIPELINE], tmp_path)
    assert (done.returncode, attempts) == (0, ""), done.stderr[-2000:]
    assert "(8,)" in done.stdout


@pytest.mark.slow
def test_a_notebook_of_smoke_asks_nobody(tmp_path):
    for name in ("pyproject.toml", "icrm_lib", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks/02_preferences.ipynb", tmp_path / "notebooks")
    done, attempts = without_network([sys.executable, "-m", "icrm_lib.cli.run", "--only", "02"], tmp_path)
    assert (done.returncode, attempts) == (0, ""), done.stderr[-2000:]
    assert (tmp_path / "runs/smoke/02_preferences.ipynb").is_file()


@pytest.mark.parametrize("profile", ["smoke", "lab"])
def test_a_model_of_the_hub_is_not_asked_for(profile, tmp_path):
    code = f"from icrm_lib.cli.execution import prepare_environment; prepare_environment({profile!r})\n"
    code += "import huggingface_hub; huggingface_hub.hf_hub_download('owner/model', 'config.json')"
    done, attempts = without_network([sys.executable, "-c", code], tmp_path)
    assert done.returncode and attempts == "" and "offline" in done.stderr.lower()


TELEMETRY = "import os, {first}; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"


@pytest.mark.parametrize(
    ("first", "more", "off"),
    [
        ("icrm_lib", {}, "True"),
        ("huggingface_hub.constants, icrm_lib", {}, "True"),
        ("icrm_lib", {"HF_HUB_DISABLE_TELEMETRY": "0"}, "False"),
    ],
)
def test_telemetry_is_off_unless_asked_for(first, more, off, tmp_path):
    done, _ = without_network([sys.executable, "-c", TELEMETRY.format(first=first)], tmp_path, **more)
    assert done.stdout.strip() == off
