"""The arrows between modules point downwards only (the table in CONTRIBUTING.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import icrm_lib

PACKAGE = Path(icrm_lib.__file__).parent
LAYERS = [
    {"runtime", "records", "profiles", "safe_loading"},
    {"testbed", "testbed_words", "row_files", "tokenization", "objectives", "checkpoints", "base_model", "reward_head"},
    {"preferences", "benchmark_data", "scoring", "reward_model", "value_head", "generator", "sampling", "paper_data"},
    {"collation", "training", "methods", "simulation", "benchmarks", "pair_accuracy", "measures", "early_rejection"},
    {"workspace"},
    {"evaluation", "best_of_n", "policy", "experiments"},
    {"evidence", "tables", "heatmaps", "figures"},
]
ENTRY_POINTS = {"run", "train", "plan"}  # on top of everything; nobody imports them
SIDEWAYS = {
    "records": {"runtime"},
    "profiles": {"runtime", "records"},
    "testbed": {"testbed_words"},
    "paper_data": {"preferences", "sampling"},
    "base_model": {"checkpoints"},
    "reward_model": {"scoring"},
    "value_head": {"reward_model"},
    "training": {"collation"},
    "methods": {"training"},
    "simulation": {"methods"},
    "experiments": {"policy", "evaluation", "best_of_n"},
    "tables": {"evidence"},
    "heatmaps": {"figures"},
}
LEVEL = {name: level for level, names in enumerate([*LAYERS, ENTRY_POINTS]) for name in names}
WITHOUT_TORCH = LAYERS[6]  # records in, text or figure out
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(source: str) -> tuple[set[str], set[str]]:
    """Return what a module imports anywhere: (modules of icrm_lib, packages outside the standard library).

    A name imported from the package itself (`from icrm_lib import Language`) counts as a module of that name.
    """
    own, others = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "icrm_lib" * bool(node.level) + "." * bool(node.level and node.module) + (node.module or "")
            names = [f"{base}.{alias.name}" for alias in node.names] if base == "icrm_lib" else [base]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            (own if top == "icrm_lib" else others).add(rest.partition(".")[0] if top == "icrm_lib" else top)
    return own, others - set(sys.stdlib_module_names)


def problems(module: str, source: str) -> list[str]:
    """Return what is wrong with the imports of a module, one sentence each."""
    if module not in LEVEL:
        return [f"{module} has no layer yet: add it to LAYERS in tests/test_imports.py and to CONTRIBUTING.md"]
    own, others = imports(source)
    found = []
    for name in sorted(own - {""}):
        if name not in LEVEL:
            found.append(f"{module} imports icrm_lib.{name}, which is no module with a layer; import the module")
        elif LEVEL[name] >= LEVEL[module] and name not in SIDEWAYS.get(module, set()):
            found.append(f"{module} (layer {LEVEL[module]}) imports {name} (layer {LEVEL[name]}): not downwards")
    if module == "objectives" and (own or others != {"torch"}):
        found.append(f"objectives imports torch only, not {sorted(own | others - {'torch'})}")
    if module in WITHOUT_TORCH and others & {"torch", "transformers"}:
        found.append(f"{module} renders records and does without torch and transformers")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_downwards(module):
    assert problems(module, (PACKAGE / f"{module}.py").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("preferences", "from icrm_lib import training", "not downwards"),
        ("preferences", "from icrm_lib.reward_model import RewardModel", "not downwards"),
        ("preferences", "import icrm_lib.workspace as w", "not downwards"),
        ("preferences", "from . import policy", "not downwards"),
        ("preferences", "from .policy import f", "not downwards"),
        ("preferences", "def f():\n    from icrm_lib.training import ICRMTrainer", "not downwards"),
        ("workspace", "from icrm_lib.run import main", "not downwards"),
        ("run", "from icrm_lib import train", "not downwards"),
        ("workspace", "from icrm_lib import Language", "no module with a layer"),
        ("objectives", "import torch\nimport numpy", "torch only"),
        ("objectives", "import torch\nfrom icrm_lib import runtime", "torch only"),
        ("tables", "def f():\n    import torch", "does without torch"),
        ("utils", "", "add it to LAYERS"),
    ],
)
def test_a_wrong_import_is_found(module, source, complaint):
    assert any(complaint in problem for problem in problems(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "training",
            "import torch\nfrom icrm_lib import objectives, reward_model\nfrom icrm_lib.records import x",
        ),
        ("testbed", "from icrm_lib import testbed_words as words"),
        ("records", "from icrm_lib import runtime"),
        ("objectives", "import math\nimport torch\nimport torch.nn.functional as F"),
        ("run", "from icrm_lib.workspace import Workspace"),
    ],
)
def test_a_right_import_passes(module, source):
    assert problems(module, source) == []


def test_no_module_stands_in_two_layers():
    assert len(LEVEL) == sum(map(len, LAYERS)) + len(ENTRY_POINTS)


@pytest.mark.parametrize("module", ["icrm_lib", "icrm_lib.records", "icrm_lib.profiles", "icrm_lib.run"])
def test_import_stays_light(module):
    code = f"import sys, {module}; print(sorted({{'torch', 'transformers', 'trl'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
