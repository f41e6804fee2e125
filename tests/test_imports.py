"""Arrows between packages point downwards, through chains too, and what renders records never loads torch."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import icrm_lib

PACKAGE = Path(icrm_lib.__file__).parent
# From the ground up: what stands in a line imports from the lines above it, never from its own or a later one.
LINES = [
    {"runtime"},
    {"records", "profiles", "objectives", "tokenization", "measures", "figures"},
    {"heatmaps", "methods"},
    {"benchmarks", "preferences", "testbed"},
    {"language_model"},
    {"reward_model", "generator"},
    {"training", "policy", "best_of_n", "decoding"},
    {"systems"},
    {"lab"},
    {"report", "plan"},
    {"cli"},
]
LINE = {name: number for number, names in enumerate(LINES) for name in names}
WITHOUT_TORCH = ("report", "heatmaps", "figures", "measures", "methods", "profiles", "records", "runtime", "lab.cells")
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate"}


def name_of(path: Path) -> str:
    """Dotted name below `icrm_lib` of a file: "lab.cells", and "lab" for its `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(source: str, anywhere: bool = True) -> tuple[set[str], set[str]]:
    """Return what a source imports: (dotted names below `icrm_lib`, packages outside the standard library).

    Args:
        source: of a module.
        anywhere: also inside functions; else only what importing the module runs.
    """
    own, others = set(), set()
    nodes = list(ast.walk(ast.parse(source)))
    inside = {id(n) for f in nodes if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    for node in nodes:
        if not isinstance(node, ast.Import | ast.ImportFrom) or (not anywhere and id(node) in inside):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = "icrm_lib" * bool(node.level) + "." * bool(node.level and node.module) + (node.module or "")
            names = [f"{base}.{alias.name}" if base.startswith("icrm_lib") else base for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            (own if top == "icrm_lib" else others).add(rest if top == "icrm_lib" else top)
    return own, others - set(sys.stdlib_module_names)


def problems(module: str, source: str) -> list[str]:
    """Return what is wrong with the imports of a module, one sentence each."""
    room = module.partition(".")[0]
    if not room:
        return []  # the package itself names its exports and imports them when asked
    if room not in LINE:
        return [f"{room} has no line yet: add it to LINES in tests/test_imports.py and to CONTRIBUTING.md"]
    own, others = imports(source)
    found = []
    for name in sorted({name.partition(".")[0] for name in own} - {"", room}):
        if name not in LINE:
            found.append(f"{module} imports icrm_lib.{name}, which has no line; import the module that defines it")
        elif LINE[name] >= LINE[room] and (room, name) not in PENDING:
            found.append(f"{module} (line {LINE[room]}) imports {name} (line {LINE[name]}): not downwards")
    if room == "report" and (beyond := {name for name in own if name.startswith("lab")} - {"lab", "lab.cells"}):
        beyond = {name for name in beyond if not name.startswith("lab.cells.")}
        found += [f"{module} reads lab.cells only, not {sorted(beyond)}"] * bool(beyond)
    outside = {name for name in own if name.partition(".")[0] != "objectives"} | (others - {"torch"})
    if room == "objectives" and outside:
        found.append(f"{module} imports torch only, not {sorted(outside)}")
    return found


PENDING = {("policy", "lab"), ("best_of_n", "lab"), ("preferences", "language_model")}


@cache
def reached(module: str) -> frozenset[str]:
    """All modules of the library that importing `module` runs, itself and the packages around them included."""
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        while name and name not in FILES:  # a function, class or constant: the module that it is taken from
            name = name.rpartition(".")[0]
        if name in seen:
            continue
        seen.add(name)
        waiting += [name.rpartition(".")[0]] * ("." in name)
        waiting += imports(FILES[name].read_text(encoding="utf-8"), anywhere=False)[0]
    return frozenset(seen)


@pytest.mark.parametrize("module", FILES)
def test_arrows_point_downwards(module):
    assert problems(module, FILES[module].read_text(encoding="utf-8")) == []


def test_no_chain_leads_back_to_its_start():
    for module in FILES:
        own = imports(FILES[module].read_text(encoding="utf-8"), anywhere=False)[0]
        for target in own:
            while target and target not in FILES:
                target = target.rpartition(".")[0]
            if target and "." in target and target != module:
                direct = imports(FILES[target].read_text(encoding="utf-8"), anywhere=False)[0]
                assert module not in direct, f"{module} and {target} import each other"


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith(WITHOUT_TORCH) and name != "lab"])
def test_without_torch_through_any_chain(module):
    heavy = {
        name: imports(FILES[name].read_text(encoding="utf-8"), anywhere=False)[1] & HEAVY for name in reached(module)
    }
    assert {name: found for name, found in heavy.items() if found} == {}


@pytest.mark.parametrize(
    "module", ["icrm_lib", *(f"icrm_lib.{name}" for name in FILES if name.startswith(WITHOUT_TORCH))]
)
def test_in_a_fresh_process_torch_stays_away(module):
    if module == "icrm_lib.lab":
        pytest.skip("a package without code of its own")
    code = f"import sys, {module}; print(sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("preferences.rows", "from icrm_lib import training", "not downwards"),
        ("preferences.rows", "from icrm_lib.reward_model import RewardModel", "not downwards"),
        ("preferences", "import icrm_lib.lab.workspace as w", "not downwards"),
        ("preferences", "from icrm_lib.testbed import Language", "not downwards"),
        ("preferences", "def f():\n    from icrm_lib.training import ICRMTrainer", "not downwards"),
        ("lab.workspace", "from icrm_lib.cli.run import main", "not downwards"),
        ("lab.workspace", "from icrm_lib import Language", "has no line"),
        ("objectives", "import torch\nimport numpy", "torch only"),
        ("objectives", "import torch\nfrom icrm_lib import runtime", "torch only"),
        ("report.tables", "from icrm_lib.lab.workspace import Workspace", "lab.cells only"),
        ("utils", "", "add it to LINES"),
    ],
)
def test_a_wrong_import_is_found(module, source, complaint):
    assert any(complaint in problem for problem in problems(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("training.trainer", "import torch\nfrom icrm_lib import objectives\nfrom icrm_lib.records import x"),
        ("testbed.language", "from icrm_lib.testbed import words as words"),
        ("records", "from icrm_lib import runtime"),
        ("objectives", "import math\nimport torch\nimport torch.nn.functional as F"),
        ("report.tables", "from icrm_lib.lab.cells import Cell"),
        ("cli.run", "from icrm_lib.lab.workspace import Workspace"),
    ],
)
def test_a_right_import_passes(module, source):
    assert problems(module, source) == []


def test_no_room_stands_in_two_lines():
    assert len(LINE) == sum(map(len, LINES))
