"""pyproject.toml, requirements.lock, environment.yml and README.md agree, and the lock is installed."""

import ast
import re
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import icrm_lib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOCK_LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


def pins(lines: list[str]) -> dict[str, str]:
    """Return canonical name -> specifier for requirement lines."""
    return {canonicalize_name(r.name): str(r.specifier) for r in map(Requirement, lines)}


LOCK = pins(LOCK_LINES)
RUNTIME = pins(PROJECT["project"]["dependencies"])
TEST = pins(PROJECT["project"]["optional-dependencies"]["test"])
DIRECT = RUNTIME | TEST
DISTRIBUTIONS = packages_distributions()


@pytest.mark.parametrize("line", LOCK_LINES)
def test_lock_entry_is_one_exact_public_version(line):
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), f"{line!r} is not `name==version`"


def test_lock_names_every_package_once():
    assert len(LOCK) == len(LOCK_LINES)


def test_direct_dependencies_are_pinned_as_in_the_lock():
    assert {name: LOCK.get(name) for name in DIRECT} == DIRECT


def test_build_backend_is_the_one_in_the_lock():
    assert pins(PROJECT["build-system"]["requires"]) == {"setuptools": LOCK["setuptools"]}


@pytest.mark.parametrize("name", sorted(LOCK))
def test_installed_version_is_the_locked_one(name):
    # torch's build tag (+cpu, +cu130) depends on the platform and is no part of the lock.
    assert f"=={Version(version(name)).public}" == LOCK[name]


def needed() -> dict[str, list[Requirement]]:
    """Return what the direct dependencies need on this platform, themselves included, as the metadata say it.

    Returns:
        Canonical name -> every requirement on it.
    """
    found: dict[str, list[Requirement]] = defaultdict(list)
    done: set[tuple[str, str]] = set()
    waiting = [Requirement(f"{name}{specifier}") for name, specifier in DIRECT.items()]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        found[name].append(requirement)
        for extra in {"", *requirement.extras}:
            if (name, extra) not in done:
                done.add((name, extra))
                known = map(Requirement, requires(name) or []) if name in LOCK else []
                waiting += [r for r in known if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found


def test_lock_is_complete_and_has_nothing_to_spare():
    """The Makefile installs it without resolving, so nothing else would notice."""
    cuda = re.compile(r"nvidia-.*|cuda-.*|triton")  # come with a CUDA build of torch, pinned by torch itself
    closure = {name: asked for name, asked in needed().items() if not cuda.fullmatch(name)}
    missing = {name: list(map(str, asked)) for name, asked in closure.items() if name not in LOCK}
    assert missing == {}, "needed but not in requirements.lock"
    clashes = [
        str(r) for name, asked in closure.items() for r in asked if LOCK[name].removeprefix("==") not in r.specifier
    ]
    assert clashes == [], "requirements.lock has another version than is asked for"
    if sys.platform == "linux" and sys.version_info[:2] == (3, 11):  # where the lock is made
        assert set(LOCK) - set(closure) == set(), "in requirements.lock but needed by nothing"


def test_environment_yml_installs_the_lock_and_the_package():
    *conda, pip = ENVIRONMENT["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert conda == ["python=3.11", "pip"]


def test_python_versions_agree():
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert "sys.version_info < (3, 11)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_readme_gives_a_reason_for_the_dependency(name):
    lines = re.findall(rf"^[-|*] *`{re.escape(name)}`[:| ]+(.*)$", README, flags=re.MULTILINE | re.IGNORECASE)
    assert len(lines) == 1, f"README.md needs one line `{name}`: its reason"
    assert len(lines[0].split()) >= 3, f"README.md gives no reason for {name}: {lines[0]!r}"


def test_version_is_said_once():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {icrm_lib.__version__, citation["version"]} == {PROJECT["project"]["version"]}


def third_party_imports(path: Path) -> set[str]:
    """Return the distributions that a file imports, the standard library and this package left out."""
    tops = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            tops |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            tops.add(node.module.partition(".")[0])
    outside = tops - set(sys.stdlib_module_names) - {"icrm_lib"}
    return {canonicalize_name(DISTRIBUTIONS.get(top, [top])[0]) for top in outside}


@pytest.mark.parametrize("path", sorted((ROOT / "icrm_lib").rglob("*.py")), ids=lambda path: path.stem)
def test_what_the_library_imports_is_declared(path):
    extras = PROJECT["project"]["optional-dependencies"]
    optional = set().union(*(pins(lines) for name, lines in extras.items() if name != "test"))
    assert third_party_imports(path) - set(RUNTIME) - optional == set()
