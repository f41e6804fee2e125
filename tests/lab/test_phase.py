"""Records of the tabular stage: one a language, not made twice, and the prediction that comes of all of them."""

import numpy as np
import pytest

from icrm_lib import records, runtime
from icrm_lib.lab import phase
from icrm_lib.phase import Sizes, phase_languages
from icrm_lib.phase.prediction import chosen_languages, largest_effects
from icrm_lib.phase.study import Regime

TINY = Sizes(few=Regime(10, 2, 2, 10), many=Regime(12, 2, 2, 12), held_out=10)
NAMES = ["even-5_verbs-bare-drift", "good_likely-5_verbs-bare-drift"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of its own for the records, with few and small tables."""
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    monkeypatch.setattr(phase, "Sizes", lambda: TINY)
    return tmp_path


def test_a_recorded_language_is_not_run_again(project):
    assert list(phase.run_languages(NAMES[:1])) == NAMES[:1]
    record = records.read_json(phase.record_path(NAMES[0]))
    assert set(record) == {"config", "code", "environment", "metrics"}
    assert record["config"]["language"] == phase_languages()[NAMES[0]].config() | {"persistence": 0.333333}
    assert len(record["metrics"]["few"]["shuffled"]["change_auc"]) == 2
    assert list(phase.run_languages(NAMES)) == NAMES[1:]
    assert list(phase.run_languages(NAMES[:1], fresh=True)) == NAMES[:1]
    again = records.read_json(phase.record_path(NAMES[0]))
    assert again["metrics"] | {"seconds": 0} == record["metrics"] | {"seconds": 0}


def test_records_of_other_sizes_are_made_again_and_of_other_code_are_named(project, monkeypatch):
    list(phase.run_languages(NAMES[:1]))
    assert phase.is_finished(NAMES[0]) and not phase.made_by_other_code(NAMES[:1])
    path = phase.record_path(NAMES[0])
    records.write_json(path, records.read_json(path) | {"code": "before"})
    assert phase.is_finished(NAMES[0]) and phase.made_by_other_code(NAMES[:1]) == NAMES[:1]
    monkeypatch.setattr(phase, "Sizes", Sizes)
    assert not phase.is_finished(NAMES[0])
    path.write_text("{", encoding="utf-8")
    assert not phase.is_finished(NAMES[0])


def test_the_prediction_needs_every_language(project):
    list(phase.run_languages(NAMES[:1]))
    with pytest.raises(FileNotFoundError):
        phase.write_prediction()
    metrics = records.read_json(phase.record_path(NAMES[0]))["metrics"]
    for number, name in enumerate(phase_languages()):
        known = {control: value + number for control, value in metrics["known"].items()}
        records.write_json(phase.record_path(name), {"code": "same", "metrics": metrics | {"known": known}})
    path = phase.write_prediction()
    assert path == project / "results" / "phase" / "prediction.json"
    found = records.read_json(path)
    assert found["code"] == ["same"] and set(found["effects"]) == set(phase_languages())
    assert len(set(found["chosen"])) == 12 and set(found["largest"]) < set(found["chosen"])


def test_the_registered_prediction_is_what_the_records_say():
    """Every language is recorded from a clean tree, and what is registered follows from the records by the rule."""
    stored = {name: records.read_json(phase.record_path(name)) for name in phase_languages()}
    assert all(phase.is_finished(name) for name in stored)
    assert not any(record["environment"]["commit"].endswith("-dirty") for record in stored.values())
    found = records.read_json(runtime.project_root() / "results" / "phase" / "prediction.json")
    assert found["code"] == sorted({record["code"] for record in stored.values()})
    effects = found["effects"]
    assert found["chosen"] == chosen_languages(effects)
    assert found["largest"] == largest_effects(effects, found["chosen"])
    for name, record in stored.items():
        for regime, measures in effects[name].items():
            for measure, effect in measures.items():
                sides = [record["metrics"][regime][w][measure] for w in ("probability", "uniform")]
                assert effect["effect"] == pytest.approx(np.subtract(*sides).mean(), abs=1e-5)
