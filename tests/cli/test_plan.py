"""`make plan`: every profile, without a network; as text and as one JSON object; what does not exist is refused."""

import json
import socket

import pytest

from icrm_lib.cli import plan as command
from icrm_lib.plan import describe, make_plan
from icrm_lib.profiles import known_profiles, load_profile


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a plan asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("profile", known_profiles())
def test_every_profile_is_planned_without_network(profile, no_network):
    made = make_plan(profile, device="80")
    names = [stage["stage"] for stage in made["stages"]]
    own = load_profile(profile)
    assert names[-2:] == ["lower layers" if own.passes_once else "generator pass", "reward model"]
    assert ("sampling" in names) == (profile == "qwen2.5-1.5b-math")
    assert ("generator fit" in names) == (own.generator.kind == "fitted")
    assert ("base model" in names) == (profile in ("smoke", "lab"))
    assert all(stage["peak_gib"] > 0 and stage["hours"] > 0 and stage["fits"] == "yes" for stage in made["stages"])
    assert made["hours"] == pytest.approx(sum(stage["hours"] for stage in made["stages"]))
    text = describe(made)
    assert all(len(line) <= 130 for line in text.splitlines()) and "GiB" in text
    assert all(file["name"] in text for file in made["files"])
    if profile == "llama3-8b-skywork":  # the LM head is downloaded, though no reward model has one
        assert made["files"][0]["bytes"] == pytest.approx(2 * 8_030_261_248, rel=1e-5)


def test_the_command_prints_one_json_object(capsys):
    assert command.main(["--profile", "smoke", "--device", "24", "--method", "bt", "--json"]) == 0
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
    assert command.main(["--profile", "smoke"]) == 0
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
    assert command.main(arguments) == 2
    assert message in capsys.readouterr().err
