"""Records of cells stay valid: those that are committed, and those that were made before a setting came."""

import json

from tiny import micro_grid

from icrm_lib import records
from icrm_lib.lab.cell import PURPOSES, cell_config, cells_folder, is_finished
from icrm_lib.lab.cells import VERSION, Cell, purpose_of, studies
from icrm_lib.lab.inputs import settings_of
from icrm_lib.profiles import load_profile
from icrm_lib.report.cells import TUNING

MICRO = micro_grid()


def test_a_setting_that_came_later_does_not_undo_a_record_while_it_has_its_default(tmp_path):
    cell = Cell("bt", 0)
    config = cell_config(MICRO, cell, settings_of(MICRO, cell, {}))
    old = json.loads(json.dumps(config))
    del old["settings"]["margin"], old["profile"]["samples"]
    old["settings"]["padding_free"] = False  # how batches are laid out decides no number
    path = tmp_path / "old.json"
    path.write_text(json.dumps({"config": old}))
    assert is_finished(path, config)
    changed = json.loads(json.dumps(config))
    changed["settings"]["margin"] = True
    assert not is_finished(path, changed)
    del old["settings"]["lora_rank"]  # MICRO's is not the default
    path.write_text(json.dumps({"config": old}))
    assert not is_finished(path, config)


def test_committed_records_are_of_cells_of_the_grid_and_no_study_mixes_versions():
    """Records of an older version stay readable until their study is computed again, as a whole."""
    for purpose in PURPOSES:
        names = {cell.name for study, cells in studies().items() if purpose_of(study) == purpose for cell in cells}
        folder = cells_folder(load_profile("lab"), purpose)
        found = {path.stem: records.read_json(path)["config"]["version"] for path in folder.glob("*-seed_*.json")}
        evidence = {name: version for name, version in found.items() if int(name.rpartition("_")[2]) < TUNING}
        assert len(set(evidence.values())) == 1, purpose
        if set(evidence.values()) == {VERSION}:
            assert set(evidence) == names
        else:
            assert len(set(evidence) & names) > 0.8 * len(evidence)
