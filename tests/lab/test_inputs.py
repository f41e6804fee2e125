"""What cells train on: paired pairs, disjoint prompts, labels and weights that are what they are called."""

import numpy as np
import pytest
from tiny import micro_grid

from icrm_lib.lab.cells import ROLLOUTS, Cell
from icrm_lib.lab.held_out import SHIFTS
from icrm_lib.lab.held_out import test_set as shifted_pairs
from icrm_lib.lab.inputs import settings_of, training_rows, training_workspace

MICRO = micro_grid()
pytestmark = pytest.mark.usefixtures("own_root")


def settings(cell):
    return settings_of(MICRO, cell, {})


def test_training_and_test_prompts_are_disjoint_and_test_sets_differ_as_named():
    train = set(training_workspace(MICRO, Cell("bt", 0)).pairs["train"]["prompt_id"])
    assert train
    sets = {name: shifted_pairs(MICRO, name) for name in SHIFTS}
    own = training_workspace(MICRO, Cell("bt", 0)).tokenized["train"]
    heads = {tuple(ids[:start]) for ids, start in zip(own["chosen_ids"], own["prompt_length"], strict=True)}
    for data in sets.values():
        assert heads.isdisjoint({tuple(ids[:start]) for ids, start in zip(data.rows, data.starts, strict=True)})
    length = {name: np.array([len(row) for row in data.rows]) for name, data in sets.items()}
    assert length["longer"].min() > np.median(length["in_distribution"])
    chosen, rejected = np.split(length["length_reversed"], 2)
    assert (chosen < rejected).all()
    disagree = {name: (data.gold[:, 0] < data.gold[:, 1]).mean() for name, data in sets.items()}
    assert disagree["noisier"] > disagree["in_distribution"]
    verbs = [{t for row in sets[name].rows for t in row} for name in ("unseen_verbs", "in_distribution")]
    assert len(verbs[0] - verbs[1]) > 10


def test_methods_of_one_seed_train_on_the_same_pairs_and_another_seed_on_others():
    ids = [
        training_rows(MICRO, Cell(method, seed), settings(Cell(method, seed)))["chosen_ids"][:]
        for method, seed in (("bt", 0), ("icrm", 0), ("bt", 1))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_confounded_pairs_have_the_longer_response_chosen_more_often():
    def longer(data):
        rows = training_rows(MICRO, Cell("bt", 0, data=data), settings(Cell("bt", 0)))
        return np.mean([len(c) > len(r) for c, r in zip(rows["chosen_ids"], rows["rejected_ids"], strict=True)])

    assert longer("confounded") > longer("plain") + 0.1


def test_perceived_margins_are_positive_and_follow_the_gold_difference():
    cell = Cell("bt_margin", 0)
    rows = training_rows(MICRO, cell, settings(cell))
    workspace = training_workspace(MICRO, Cell("bt", 0))
    sides = workspace.conversations("train")
    gold = np.subtract(*[[workspace.language.gold_score(c) for c in sides[s]] for s in ("chosen", "rejected")])
    margin = np.array(rows["margin"])
    assert (margin > 0).all() and np.corrcoef(margin, gold)[0, 1] > 0.5


@pytest.mark.parametrize("method", ["prm", "prm_noisy"])
def test_clause_labels_stand_at_the_ends_of_clauses_with_the_exact_value_or_its_rollouts(method):
    cell = Cell(method, 0)
    rows = training_rows(MICRO, cell, settings(cell))
    language = training_workspace(MICRO, Cell("bt", 0)).language
    for row in rows.select(range(8)):
        ids, start = row["chosen_ids"], row["prompt_length"]
        labels = np.array(row["chosen_step_values"], dtype=float)
        labelled = np.flatnonzero(~np.isnan(labels))
        clauses = int(language.quality_tokens(ids).sum())
        assert len(labels) == len(ids) - start and len(labelled) == clauses + 1
        following = language.tokenizer.convert_ids_to_tokens([[*ids, -1][start + t + 1] for t in labelled[:-1]])
        assert set(following) <= {".", ",", "and", "then"} and labelled[-1] == len(labels) - 1
        exact = language.prefix_values(ids)[start:]
        if method == "prm":
            np.testing.assert_allclose(labels[labelled], exact[labelled], atol=1e-6)
        else:
            np.testing.assert_allclose(labels[labelled] * ROLLOUTS % 1, 0, atol=1e-9)
        assert row["chosen_label"] == labels[-1] == exact[-1]


@pytest.mark.parametrize(
    "generator", ["exact", "temperature 0.5", "small", "under-trained", "another language", "unigram"]
)
def test_every_generator_gives_weights_of_its_own(generator):
    fitted, other = (
        training_rows(MICRO, cell, settings(cell))["chosen_logprobs"][:]
        for cell in (Cell("icrm", 0), Cell("icrm", 0, generator=generator))
    )
    assert [len(a) for a in fitted] == [len(b) for b in other]
    assert np.abs(np.concatenate(fitted) - np.concatenate(other)).mean() > 1e-3
    assert (np.concatenate(other) <= 1e-6).all()
