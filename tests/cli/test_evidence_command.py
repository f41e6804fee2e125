"""The command that makes the evidence: what it refuses, and that what is committed is not made again."""

import pytest

from icrm_lib.cli import evidence
from icrm_lib.lab import grid


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "mian"], "unknown study 'mian'; did you mean 'main'?"),
        (["--profile", "labb"], "unknown profile 'labb'; did you mean 'lab'?"),
        (["--engine", "rey"], "unknown engine 'rey'; did you mean 'ray'?"),
        (["--gpus", "2"], "a cell cannot take 2.0 of a GPU; give a share between 0 and 1"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(capsys, arguments, message):
    with pytest.raises(SystemExit):
        evidence.parse(arguments)
    assert message in capsys.readouterr().err


def test_committed_studies_are_finished(monkeypatch, capsys):
    monkeypatch.setattr(grid, "pack", lambda *_: pytest.fail("a committed cell would be run again"))
    evidence.main(["--only", "compute, policy"])
    assert capsys.readouterr().out.startswith("compute, policy: finished after 0 min")
