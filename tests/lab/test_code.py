"""What code an artefact depends on: everything that computes, three hops down, and no comment."""

import pytest

from icrm_lib.lab.code import code_fingerprint

FILES = {
    "__init__": "",
    "maker": '"""Makes."""\nimport numpy\nfrom kit.steps import go\n\ndef make():\n    """Do."""\n    return go()\n',
    "steps": "from kit.room import walk\n\n\ndef go():\n    from kit.late import wait\n    return walk(), wait()\n",
    "room/__init__": '"""A room."""\nfrom kit.room.floor import walk\n',
    "room/floor": "def walk():\n    return 1  # once\n",
    "late": "def wait():\n    return 1\n",
    "stranger": "def other():\n    return 1\n",
}


@pytest.fixture
def fingerprint(tmp_path):
    """The fingerprint of `maker` in a small package, with some files changed."""

    def of(place="kit", **changes):
        for name, text in {**FILES, **{name.replace("__", "/"): text for name, text in changes.items()}}.items():
            path = tmp_path / place / "kit" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return code_fingerprint("kit.maker", tmp_path / place / "kit")

    return of


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("maker", '"""Makes."""', '"""Makes what is asked."""  # and why'),
        ("maker", '"""Do."""\n    ', ""),
        ("room__floor", "  # once", ""),
        ("room__floor", "return 1", "return (1)"),
        ("stranger", "return 1", "return 2"),
    ],
)
def test_a_comment_a_docstring_layout_and_strangers_change_nothing(fingerprint, name, old, new):
    text = FILES[name.replace("__", "/")]
    assert old in text
    assert fingerprint("changed", **{name: text.replace(old, new)}) == fingerprint()


@pytest.mark.parametrize("name", ["maker", "steps", "late", "room__floor"])
def test_other_code_counts_through_every_chain(fingerprint, name):
    text = FILES[name.replace("__", "/")].replace("return ", "return 0 + ")
    assert fingerprint("changed", **{name: text}) != fingerprint()
