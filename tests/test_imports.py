"""Arrows between packages point downwards, and what renders records never loads torch.

An arrow leads from a line to one further up in `LINES`, never sideways: so every chain of arrows goes down, too.
Within a package no chain of imports leads back to its start.
"""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import icrm_lib

PACKAGE = Path(icrm_lib.__file__).parent
# From the ground up: what stands in a line imports from the lines above it, never from its own or a later one.
LINES = [
    {"runtime"},
    {"records", "profiles", "objectives", "tokenization", "rows", "measures", "figures"},
    {"heatmaps", "methods"},
    {"benchmarks", "preferences", "testbed"},
    {"language_model"},
    {"reward_model", "generator"},
    {"training", "policy", "best_of_n", "decoding"},
    {"systems", "phase"},
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


SOURCES = {name_of(path): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Return what a module imports, inside functions too: (dotted names below `icrm_lib`, other packages' names)."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"a relative import of {node.module}; write it with icrm_lib"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    split = [name.partition(".") for name in names]
    own = {rest for top, _, rest in split if top == "icrm_lib"}
    return own, {top for top, _, _ in split} - {"icrm_lib"} - set(sys.stdlib_module_names)


def room_of(name: str) -> str:
    return name.partition(".")[0]


def problems(module: str, source: str) -> list[str]:
    """Return what is wrong with the imports of a module, one sentence each."""
    room = room_of(module)
    if not room:
        return []  # the package itself names its exports and imports them when asked
    if room not in LINE:
        return [f"{room} has no line yet: add it to LINES in tests/test_imports.py and to CONTRIBUTING.md"]
    own, others = imports(ast.parse(source))
    found = []
    for name in sorted({room_of(name) for name in own} - {"", room}):
        if name not in LINE:
            found.append(f"{module} imports icrm_lib.{name}, which has no line; import the module that defines it")
        elif LINE[name] >= LINE[room]:
            found.append(f"{module} (line {LINE[room]}) imports {name} (line {LINE[name]}): not downwards")
    beyond = {name for name in own if room_of(name) == "lab" and not f"{name}.".startswith("lab.cells.")}
    if beyond and (room == "report" or module == "lab.cells"):
        found.append(f"{module} reads lab.cells only, not {sorted(beyond)}")
    outside = {name for name in own if room_of(name) != "objectives"} | (others - {"torch"})
    if outside and room == "objectives":
        found.append(f"{module} imports torch only, not {sorted(outside)}")
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_point_downwards(module):
    assert problems(module, SOURCES[module]) == []


def runs(source: str) -> set[str]:
    """Return the files of the library that importing a module runs because it names them."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = []  # imported when it is called
    files = set()
    for name in imports(tree)[0]:
        while name not in SOURCES:  # a function, class or constant: the module that it is taken from
            name = name.rpartition(".")[0]
        files.add(name)
    return files


def test_no_chain_leads_back_to_its_start():
    TopologicalSorter({name: runs(source) for name, source in SOURCES.items()}).prepare()  # names the chain


FRESH = f"""
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    assert not (loaded := {HEAVY} & set(sys.modules)), f"{{name}} loads {{sorted(loaded)}}"
"""


def test_in_a_fresh_process_torch_stays_away():
    names = [f"{name}." for name in WITHOUT_TORCH]
    light = ["icrm_lib", *(f"icrm_lib.{name}" for name in SOURCES if f"{name}.".startswith(tuple(names)))]
    done = subprocess.run([sys.executable, "-c", FRESH, *light], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
        ("lab.cells", "def f():\n    from icrm_lib.lab import grid", "lab.cells only"),
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


def test_contributing_shows_these_lines():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, re.MULTILINE)
    assert {int(number): set(re.findall(r"`(\w+)`", names)) for number, names in rows} == dict(enumerate(LINES))
