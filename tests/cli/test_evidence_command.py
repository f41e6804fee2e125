"""The command that makes the evidence: what it refuses, and where fresh records lie."""

import pytest

from icrm_lib import records
from icrm_lib.cli import evidence
from icrm_lib.lab import grid, tuning
from icrm_lib.profiles import Profile


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


def test_fresh_cells_lie_in_a_folder_of_their_own_and_are_compared(monkeypatch, capsys, tmp_path):
    calls = []

    def run(profile, cells, *, folder, **options):
        calls.append((folder, options["engine"], options["gpus"]))
        records.write_json(folder / "bt-seed_0.json", {"metrics": {"tokens": {"smoothness": {"within": 0.25}}}})
        return {}

    monkeypatch.setattr(grid, "run_grid", run)
    monkeypatch.setattr(tuning, "tune", run)
    monkeypatch.setenv("ICRM_ROOT", str(tmp_path))  # no repository: the commit is unknown
    old = tmp_path / "results" / "lab" / "policy" / "bt-seed_0.json"
    records.write_json(old, {"metrics": {"tokens": {"smoothness": {"within": 0.5}}}})
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "load_profile", lambda name: Profile("lab"))
        evidence.main(["--only", "policy", "--fresh", "--engine", "ray", "--gpus", "0.5"])
        said = capsys.readouterr().out
        evidence.main(["--only", "policy", "--fresh", "autumn"])
    fresh = tmp_path / "results" / "lab" / "fresh-unknown"
    assert calls[:2] == [(fresh / "evidence", "ray", 0.5), (fresh / "policy", "ray", 0.5)]
    assert calls[3][0] == fresh.parent / "fresh-autumn" / "policy"  # one that can be gone on with
    assert "results/lab/policy and results/lab/fresh-unknown/policy" in said
    assert [line.split() for line in said.splitlines()][-1] == ["smoothness", "1", "0.5", "0.25", "-0.25"]
