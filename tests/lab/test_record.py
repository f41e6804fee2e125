"""Records of cells stay valid: those that are committed, and those that were made before a setting came."""

import json

from tiny import micro_grid

from icrm_lib.lab import grid
from icrm_lib.lab.cell import PURPOSES, cell_config, cells_folder, is_finished
from icrm_lib.lab.cells import Cell, purpose_of, studies
from icrm_lib.lab.grid import run_grid, tune
from icrm_lib.lab.inputs import settings_of
from icrm_lib.profiles import load_profile

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


def test_every_committed_record_is_finished_and_has_its_cell(monkeypatch):
    def missing(jobs, workers):
        raise AssertionError(f"{jobs[0].purpose}: not finished: {[job.cell.name for job in jobs]}")

    monkeypatch.setattr(grid, "pack", missing)
    profile, grid_of = load_profile("lab"), studies()
    tuned = tune(profile, [cell for cells in grid_of.values() for cell in cells], workers=0)
    recorded = {purpose: set(cells_folder(profile, purpose).glob("*.json")) for purpose in PURPOSES}
    for study, cells in grid_of.items():
        paths = run_grid(profile, cells, tuned=tuned, purpose=purpose_of(study), workers=0)
        recorded[purpose_of(study)] -= set(paths.values())
    trials = {path for path in recorded["evidence"] if path.stem.endswith(("-seed_100", "-seed_101"))}
    assert recorded == {"evidence": trials, "best_of_n": set(), "policy": set()}
