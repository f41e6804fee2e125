"""The command of the tabular stage reads its arguments and runs what is not recorded."""

import pytest

from icrm_lib.cli.phase import main, parse
from icrm_lib.lab import phase
from icrm_lib.phase import phase_languages


def test_all_languages_by_default_and_those_named():
    assert parse([]).only == list(phase_languages())
    options = parse(["--only", "even-5_verbs-bare-drift, even-5_verbs-bare-persist", "--workers", "2"])
    assert options.only == ["even-5_verbs-bare-drift", "even-5_verbs-bare-persist"] and options.workers == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "even-5_verb-bare-drift"], "did you mean 'even-5_verbs-bare-drift'"),
        (["--workers", "0"], "--workers 0: must be at least 1"),
        (["--stage", "cells"], "invalid choice"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse(arguments)
    assert message in capsys.readouterr().err


def test_it_says_what_is_left_and_writes_no_prediction_before(monkeypatch, capsys):
    monkeypatch.setattr(phase, "run_languages", lambda names, **_: iter(names))
    monkeypatch.setattr(phase, "is_finished", lambda name: name != "even-5_verbs-bare-drift")
    monkeypatch.setattr(phase, "made_by_other_code", sorted)
    main(["--only", "even-5_verbs-bare-drift,even-5_verbs-bare-persist"])
    said = capsys.readouterr().out
    assert "2 languages in 0 min, 1 still to run" in said and "1 records were made by other code" in said
    assert "prediction" not in said
