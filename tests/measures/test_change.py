"""Where token rewards move and how smoothly, by hand, against naive measures and on the testbed."""

import math
import warnings

import numpy as np
import pytest
from scipy.stats import spearmanr

from icrm_lib.measures.changes import change_at_quality, change_detection, localisation, smoothness

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")

NAN = float("nan")
REWARDS = [np.array([5.0, 6.0, 4.0, 4.5]), np.array([1.0, 1.0, 4.0])]
QUALITY = [np.array([NAN, 1, -1, NAN]), np.array([0, NAN, 0])]  # the first token has no change, so it counts nowhere


def noise_like(rng, arrays):
    return [rng.normal(size=len(array)) for array in arrays]


def with_ties(rng, lengths):
    return [rng.integers(0, 4, size=n).astype(float) for n in lengths]


def test_change_at_quality_by_hand():
    result = change_at_quality(REWARDS, QUALITY)
    # Changes 1, -2, 3 at qualities 1, -1, 0 (ranks 2, 1, 3 against 3, 1, 2); elsewhere 0.5 and 0.
    assert result == pytest.approx({"correlation": 0.5, "ratio": 2 / 0.25, "share": 6 / 6.5})


def test_change_of_the_truth_is_at_quality_and_in_its_direction(rng, truth):
    quality = [known.quality for known in truth]
    scores = change_at_quality([known.clause_scores for known in truth], quality)
    assert scores["correlation"] == pytest.approx(1) and scores["share"] == 1 and math.isnan(scores["ratio"])
    values = change_at_quality([known.values for known in truth], quality)
    # The value moves by what is news: a bad clause was to be expected after bad ones, and 0 may be good news or bad.
    assert 0.6 < values["correlation"] < 0.8
    # Elsewhere only the link words move it, which tell whether another clause follows.
    assert 30 < values["ratio"] < 60 and 0.75 < values["share"] < 0.9
    signed = [(np.diff(known.values) * known.quality[1:])[~np.isnan(known.quality[1:])] for known in truth]
    assert (np.concatenate(signed) >= 0).all()
    noise = change_at_quality(noise_like(rng, quality), quality)
    assert noise == pytest.approx({"correlation": 0, "ratio": 1, "share": noise["share"]}, abs=0.06)
    per_token = np.mean(~np.isnan(np.concatenate([q[1:] for q in quality])))
    assert noise["share"] == pytest.approx(per_token, rel=0.06)


def test_change_where_nothing_changes():
    rewards = [np.full(4, 0.1), np.full(3, 0.3)]
    assert all(math.isnan(number) for number in change_at_quality(rewards, QUALITY).values())
    nothing = change_at_quality(REWARDS, [np.full(4, NAN), np.full(3, NAN)])
    assert nothing["share"] == 0 and math.isnan(nothing["correlation"]) and math.isnan(nothing["ratio"])
    assert all(math.isnan(number) for number in change_at_quality([np.ones(1)], [np.ones(1)]).values())


def naive_localisation(rewards, quality):
    groups = {name: ([], []) for name in ("early", "middle", "late")}
    for r, q in zip(rewards, quality, strict=True):
        for t in range(1, len(r)):
            if not np.isnan(q[t]):
                name = "early" if t / len(r) < 1 / 3 else "middle" if t / len(r) < 2 / 3 else "late"
                groups[name][int(q[t] >= 0)].append(r[t] - r[t - 1])
    return {
        name: np.mean([(low < high) + 0.5 * (low == high) for low in bad for high in good]) if bad and good else NAN
        for name, (bad, good) in groups.items()
    }


def test_localisation_against_all_pairs(rng, truth):
    quality = [known.quality for known in truth[:60]]
    lengths = [len(array) for array in quality]
    for rewards in (with_ties(rng, lengths), [np.cumsum(array) for array in noise_like(rng, quality)]):
        result = localisation(rewards, quality)
        assert result == pytest.approx(naive_localisation(rewards, quality), abs=1e-12)
    assert len(set(result.values())) == 3


def test_localisation_on_the_testbed(rng, truth):
    quality = [known.quality for known in truth]
    scores = [known.clause_scores for known in truth]
    assert localisation(scores, quality) == {"early": 1.0, "middle": 1.0, "late": 1.0}
    assert localisation([-array for array in scores], quality) == {"early": 0.0, "middle": 0.0, "late": 0.0}
    assert localisation([0 * array for array in scores], quality) == {"early": 0.5, "middle": 0.5, "late": 0.5}
    values = localisation([known.values for known in truth], quality)
    assert 0.8 < values["early"] < 0.95 and 0.6 < values["late"] < 0.8  # what is settled early is no news late
    noise = localisation(noise_like(rng, quality), quality)
    assert noise == pytest.approx({"early": 0.5, "middle": 0.5, "late": 0.5}, abs=0.09)
    # A model that misses what comes late.
    early = [np.where(np.arange(len(a)) < len(a) / 3, a, a[math.ceil(len(a) / 3) - 1]) for a in scores]
    assert localisation(early, quality) == {"early": 1.0, "middle": 0.5, "late": 0.5}


def test_localisation_is_nan_where_one_kind_is_missing():
    quality = [np.array([NAN, -1, 1, -1, 0, 1])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = localisation([np.arange(6.0)], quality)
    assert math.isnan(result["early"]) and math.isnan(result["late"]) and result["middle"] == 0.5


def test_smoothness_is_spearmans_of_change_and_probability(rng):
    lengths = [1, 2, 40, 57, 20]
    rewards = with_ties(rng, lengths)
    logprobs = [np.log(rng.integers(1, 10, size=n) / 10) for n in lengths]
    rewards[4] = np.arange(20.0)  # one change throughout: no rank correlation
    sizes = [np.abs(np.diff(array)) for array in rewards]
    probs = [np.exp(array)[1:] for array in logprobs]
    overall = spearmanr(np.concatenate(sizes), np.concatenate(probs)).statistic
    within = np.mean([spearmanr(sizes[row], probs[row]).statistic for row in (2, 3)])
    assert smoothness(rewards, logprobs) == pytest.approx({"overall": overall, "within": within}, abs=1e-12)


def test_smoothness_on_known_cases(rng, truth):
    logprobs = [known.logprobs for known in truth]
    signs = [rng.choice([-1, 1], size=len(array)) for array in logprobs]
    # Whole numbers, so that equal steps stay equal: the step at a token is its surprise.
    smooth = [np.cumsum(s * np.round(1e9 * p)) for s, p in zip(signs, logprobs, strict=True)]
    assert smoothness(smooth, logprobs) == pytest.approx({"overall": -1, "within": -1}, abs=1e-9)
    assert smoothness(noise_like(rng, logprobs), logprobs) == pytest.approx({"overall": 0, "within": 0}, abs=0.03)
    exact = smoothness([known.values for known in truth], logprobs)
    assert -0.4 < exact["overall"] < -0.25 and -0.4 < exact["within"] < -0.25
    assert all(math.isnan(number) for number in smoothness([np.ones(3)], [np.zeros(3)]).values())
    assert all(math.isnan(number) for number in smoothness([np.ones(1)], [np.zeros(1)]).values())


@pytest.mark.parametrize("measure", [change_at_quality, localisation])
def test_quality_is_minus_one_zero_one_or_nan(measure):
    with pytest.raises(ValueError, match=r"response 1 has 0.5 in quality at token 2: must be -1, 0, 1 or nan"):
        measure(REWARDS, [QUALITY[0], np.array([NAN, 1, 0.5])])


def test_change_detection_by_hand():
    rewards = [np.array([0.0, 2.0, 2.5, 2.5, -1.0]), np.array([1.0, 1.0, 0.0])]
    values = [np.array([0.5, 0.7, 0.7, 0.7, 0.1]), np.array([0.2, 0.2, 0.6])]
    logprobs = [np.log([0.9, 0.1, 0.4, 0.9, 0.2]), np.log([0.3, 0.3, 0.9])]
    # |change| where the value changes: 2, 3.5, 1 (likely); elsewhere: 0.5, 0 (likely), 0.
    found = change_detection(rewards, values, logprobs)
    assert found["all"] == found["unlikely"] == 1.0
    assert found["direction"] == pytest.approx(spearmanr([2, -3.5, -1], [0.2, -0.6, 0.4]).statistic)
    rewards[0] = np.array([0.0, 2.0, 5.0, 4.0, 0.5])
    # Now 2, 3.5, 1 against 3, 1, 0: two, three and one and a half are won. Of the unlikely 2, 3.5 against 3, 0.
    found = change_detection(rewards, values, logprobs)
    assert found["all"] == pytest.approx((2 + 3 + 1.5) / 9)
    assert found["unlikely"] == pytest.approx(3 / 4)


def test_exact_values_detect_their_own_changes(truth):
    values, logprobs = [known.values for known in truth], [known.logprobs for known in truth]
    assert change_detection(values, values, logprobs) == {"all": 1.0, "unlikely": 1.0, "direction": pytest.approx(1.0)}
    rng = np.random.default_rng(0)
    found = change_detection(noise_like(rng, values), values, logprobs)
    assert all(abs(found[name] - 0.5) < 0.05 for name in ("all", "unlikely")) and abs(found["direction"]) < 0.1
    assert math.isnan(change_detection([np.zeros(3)], [np.zeros(3)], [np.zeros(3)])["all"])
