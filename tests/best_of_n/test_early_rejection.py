"""Early rejection on known candidates: the replay by hand, and the choice of a schedule."""

import numpy as np
import pytest

from icrm_lib.best_of_n.early_rejection import Schedule, choose_schedule, early_rejection, schedules, try_schedules

REWARDS = [
    np.array([0.0, 0.1, 0.9, 2.0]),  # best in the end, slow start
    np.array([0.5, 0.6, 0.7]),
    np.array([0.4, 0.2]),
    np.array([0.3, 0.3, 0.3, 0.3, 0.3]),
]


def test_without_cuts_it_is_best_of_n():
    assert early_rejection(REWARDS, Schedule(())) == (0, 14, 14)


def test_the_candidates_behind_are_stopped_where_they_are():
    # after 1 token: 0.5, 0.4, 0.3 go on, 0 is stopped after one token; after 2: 0.6 and 0.3 go on, 2 had ended
    assert early_rejection(REWARDS, Schedule(((1, 3), (2, 2)))) == (1, 1 + 3 + 2 + 5, 14)
    # all live after 3 tokens; an ended candidate counts with its last reward
    assert early_rejection(REWARDS, Schedule(((3, 1),))) == (0, 4 + 3 + 2 + 3, 14)


def test_a_schedule_that_keeps_everybody_changes_nothing_and_ties_keep_the_first():
    assert early_rejection(REWARDS, Schedule(((2, 4),))).tokens == 14
    assert early_rejection([np.array([1.0, 1.0])] * 3, Schedule(((1, 2),))) == (0, 5, 6)


@pytest.mark.parametrize("cuts", [((2, 4), (2, 3)), ((1, 2), (3, 2)), ((0, 2),), ((1, 0),)])
def test_schedules_that_make_no_sense_are_refused(cuts):
    with pytest.raises(ValueError, match="tokens must rise from 1, keeps fall to 1"):
        Schedule(cuts)


def test_every_schedule_is_listed_once():
    found = schedules((10, 20, 30), (8, 4), most_cuts=2)
    assert len(found) == len(set(found)) == 3 * 2 + 3 * 1
    assert Schedule(((10, 8), (30, 4))) in found


def test_the_most_valuable_schedule_within_the_budget_is_chosen():
    # Candidate 0 is worth most and starts slowly, 1 leads early; both have four tokens.
    rewards = [[np.array([0.0, 0.6, 0.8, 2.0]), np.array([0.5, 0.5, 0.5, 0.5])]]
    values = [np.array([1.0, 0.0])]
    early, late = Schedule(((1, 1),)), Schedule(((2, 1),))
    tried = try_schedules(rewards, values, [early, late])
    assert choose_schedule(tried, 0.8) == (late, 1.0, 6 / 8)
    assert choose_schedule(tried, 0.7) == (early, 0.0, 5 / 8)
    with pytest.raises(ValueError, match="none of 2 schedules uses at most 50%"):
        choose_schedule(tried, 0.5)


@pytest.mark.parametrize("rewards", [[], [np.array([])], [np.array([1.0]), np.array([np.nan])]])
def test_rewards_that_are_no_numbers_are_refused(rewards):
    with pytest.raises(ValueError, match="finite rewards"):
        early_rejection(rewards, Schedule(()))
