"""What token rewards mean: each measure against a naive one, on cases whose answer is known, and on the testbed."""

import math
import warnings

import numpy as np
import pytest
from scipy.optimize import fsolve
from scipy.special import expit, logit
from scipy.stats import rankdata, spearmanr

from icrm_lib.measures.tokens import (
    agreement_by_response,
    calibration,
    change_at_quality,
    localisation,
    partial_agreement,
    smoothness,
    token_agreement,
    without_controls,
)

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def noise_like(rng, arrays):
    return [rng.normal(size=len(array)) for array in arrays]


def with_ties(rng, lengths):
    return [rng.integers(0, 4, size=n).astype(float) for n in lengths]


# Order


def test_token_agreement_on_known_orders():
    truth = [np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.4, 0.6, 0.7])]
    assert token_agreement([10 * t for t in truth], truth) == pytest.approx({"overall": 1.0, "within": 1.0})
    assert token_agreement([-t for t in truth], truth) == pytest.approx({"overall": -1.0, "within": -1.0})
    shifted = [10 * truth[0] + 100, truth[1]]  # right within each response, wrong between them
    result = token_agreement(shifted, truth)
    assert result["within"] == pytest.approx(1.0) and result["overall"] < 0.5


def test_agreement_is_spearmans_for_each_response(rng):
    lengths = [2, 3, 1, 0, 30, 57, 5]
    rewards, truth = with_ties(rng, lengths), with_ties(rng, lengths)
    rewards[0], truth[0], truth[6] = np.array([1.0, 2.0]), np.array([3.0, 1.0]), np.full(5, 0.1)
    expected = [
        spearmanr(a, b).statistic if len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0 else np.nan
        for a, b in zip(rewards, truth, strict=True)
    ]
    found = agreement_by_response(rewards, truth)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.isnan(expected).tolist() == [n in (1, 0, 5) for n in lengths]
    result = token_agreement(rewards, truth)
    assert result["within"] == pytest.approx(np.nanmean(expected), abs=1e-12)
    overall = spearmanr(np.concatenate(rewards), np.concatenate(truth)).statistic
    assert result["overall"] == pytest.approx(overall, abs=1e-12)


def test_noise_agrees_with_nothing(rng, truth):
    values = [known.values for known in truth]
    noise = noise_like(rng, values)
    assert token_agreement(noise, values) == pytest.approx({"overall": 0, "within": 0}, abs=0.03)
    controls = [known.logprobs[:, None] for known in truth]
    assert partial_agreement(noise, values, controls) == pytest.approx({"overall": 0, "within": 0}, abs=0.03)
    assert token_agreement(values, values) == pytest.approx({"overall": 1, "within": 1})
    assert partial_agreement(values, values, controls) == pytest.approx({"overall": 1, "within": 1})


def test_ranks_do_not_see_a_monotone_transform(rng, truth):
    values = [known.values for known in truth]
    rewards = [array + 0.3 * rng.normal(size=len(array)) for array in values]
    controls = [np.column_stack([np.arange(len(array)), rng.normal(size=len(array))]) for array in values]
    for function in (np.exp, lambda r: r**3 - 7):
        bent = [function(array) for array in rewards]
        assert token_agreement(bent, values) == token_agreement(rewards, values)
        bent_controls = [function(array / 10) for array in controls]
        assert partial_agreement(bent, values, bent_controls) == partial_agreement(rewards, values, controls)


def first_order(r, t, c):
    """The partial correlation of three numbers per token, from the three Spearman correlations."""
    rt, rc, tc = (spearmanr(a, b).statistic for a, b in ((r, t), (r, c), (t, c)))
    return (rt - rc * tc) / math.sqrt((1 - rc**2) * (1 - tc**2))


def second_order(r, t, c, d):
    rt, rd, td = first_order(r, t, c), first_order(r, d, c), first_order(t, d, c)
    return (rt - rd * td) / math.sqrt((1 - rd**2) * (1 - td**2))


def test_partial_agreement_is_the_formula(rng):
    lengths = [30, 40, 57]
    one, two = with_ties(rng, lengths), noise_like(rng, [range(n) for n in lengths])
    truth = [a + b + rng.normal(size=len(a)) for a, b in zip(one, two, strict=True)]
    rewards = [t - 2 * b + rng.normal(size=len(t)) for t, b in zip(truth, two, strict=True)]
    for formula, controls in ((first_order, [one]), (second_order, [one, two])):
        result = partial_agreement(rewards, truth, [np.column_stack(c) for c in zip(*controls, strict=True)])
        every = [rewards, truth, *controls]
        within = np.mean([formula(*arrays) for arrays in zip(*every, strict=True)])
        pooled = formula(*map(np.concatenate, every))
        assert result == pytest.approx({"overall": pooled, "within": within}, abs=1e-10)


def test_partial_agreement_takes_out_what_the_controls_explain(rng, truth):
    values = [known.values for known in truth]
    surprise = [np.cumsum(known.logprobs) for known in truth]
    controls = [array[:, None] for array in surprise]
    assert abs(token_agreement(surprise, values)["within"]) > 0.2
    # Nothing is left of the control itself, and only noise is left of the control with noise.
    assert all(math.isnan(number) for number in partial_agreement(surprise, values, controls).values())
    noisy = [rankdata(array) + rng.normal(scale=5, size=len(array)) for array in surprise]
    assert abs(token_agreement(noisy, values)["within"]) > 0.2
    assert abs(partial_agreement(noisy, values, controls)["within"]) < 0.04
    # It finds what a control hides.
    loud = noise_like(rng, values)
    hidden = [rankdata(v) + 3 * rankdata(n) for v, n in zip(values, loud, strict=True)]
    assert token_agreement(hidden, values)["within"] < 0.5
    assert partial_agreement(hidden, values, [n[:, None] for n in loud])["within"] > 0.85


def test_partial_agreement_without_controls_and_with_useless_ones(rng):
    lengths = [4, 20, 30]
    rewards, truth = with_ties(rng, lengths), with_ties(rng, lengths)
    plain = pytest.approx(token_agreement(rewards, truth), abs=1e-12)
    assert partial_agreement(rewards, truth, [np.empty((n, 0)) for n in lengths]) == plain
    assert partial_agreement(rewards[1:], truth[1:], [np.ones((n, 2)) for n in lengths[1:]]) == pytest.approx(
        token_agreement(rewards[1:], truth[1:]), abs=1e-12
    )
    once = [rng.normal(size=(n, 1)) for n in lengths[1:]]
    twice = [np.hstack([c, c]) for c in once]  # collinear
    expected = pytest.approx(partial_agreement(rewards[1:], truth[1:], once), abs=1e-9)
    assert partial_agreement(rewards[1:], truth[1:], twice) == expected


def test_partial_agreement_leaves_out_responses_that_cannot_say_anything(rng):
    lengths = [3, 4, 30, 30, 0]  # with one control, 3 tokens are too few
    rewards, truth = noise_like(rng, [range(n) for n in lengths]), noise_like(rng, [range(n) for n in lengths])
    controls = [rng.normal(size=(n, 1)) for n in lengths]
    rewards[0], truth[0], controls[0] = np.array([1, 2, 3]), np.array([1, 3, 2]), np.array([[2], [1], [3]])
    truth[3] = np.ones(30)
    kept = [first_order(rewards[row], truth[row], controls[row][:, 0]) for row in (1, 2)]
    assert partial_agreement(rewards, truth, controls)["within"] == pytest.approx(np.mean(kept), abs=1e-10)
    nothing = partial_agreement(rewards[:1], truth[:1], controls[:1])
    assert all(math.isnan(number) for number in nothing.values())


def test_partial_agreement_refuses_controls_of_another_shape():
    arrays = [np.arange(3.0), np.arange(4.0)]
    with pytest.raises(ValueError, match=r"response 0 has controls of shape \(3,\)"):
        partial_agreement(arrays, arrays, arrays)
    with pytest.raises(ValueError, match=r"response 1 has controls of shape \(4, 2\): .* shape \(3, 1\)"):
        partial_agreement(arrays, arrays, [np.ones((3, 1)), np.ones((4, 2))])
    with pytest.raises(ValueError, match="response 1 has 4 rewards but 5 controls 0"):
        partial_agreement(arrays, arrays, [np.ones((3, 1)), np.ones((5, 1))])


# Calibration


def test_the_logit_of_the_value_is_calibrated(truth):
    values = [known.values for known in truth]
    rewards = [logit(np.clip(array, 1e-5, 1 - 1e-5)) for array in values]
    result = calibration(rewards[:150], values[:150], rewards[150:], values[150:])
    assert result["error"] < 1e-4 and result["skill"] > 0.999 and result["brier"] < 1e-4
    assert result["slope"] == pytest.approx(np.concatenate(rewards[150:]).std(), rel=1e-3)
    # The value itself orders as well, but is no logit.
    assert calibration(values[:150], values[:150], values[150:], values[150:])["error"] > 0.02


def test_calibration_does_not_see_scale_and_shift(rng, truth):
    values = [known.values for known in truth]
    rewards = [4 * array + rng.normal(size=len(array)).round(1) for array in values]
    plain = calibration(rewards[:150], values[:150], rewards[150:], values[150:])
    assert 0.2 < plain["skill"] < 0.95 and plain["slope"] > 0
    for scale, shift in ((1e-3, 7), (250, -1e4), (-1, 0)):
        moved = [scale * array + shift for array in rewards]
        result = calibration(moved[:150], values[:150], moved[150:], values[150:])
        expected = plain | {"slope": math.copysign(plain["slope"], scale)}
        if scale < 0:  # groups are cut from the other end
            assert result.pop("error") == pytest.approx(expected.pop("error"), abs=0.01)
        assert result == pytest.approx(expected, abs=1e-6)


def test_calibration_solves_the_likelihood_equations(rng):
    rewards = rng.normal(3, 5, size=400)
    values = np.clip(expit(0.4 * rewards - 2) + rng.normal(0, 0.2, size=400), 0, 1)
    z = (rewards - rewards.mean()) / rewards.std()

    def score(params):
        excess = expit(params[0] + params[1] * z) - values
        return [excess.sum(), (excess * z).sum()]

    a, b = fsolve(score, [0, 1], xtol=1e-12)
    predicted = expit(a + b * z)
    result = calibration([rewards], [values], [rewards[:100], rewards[100:]], [values[:100], values[100:]], bins=8)
    assert result["slope"] == pytest.approx(b, abs=1e-6)
    assert result["brier"] == pytest.approx(np.mean((predicted - values) ** 2), abs=1e-9)
    assert result["skill"] == pytest.approx(1 - result["brier"] / values.var(), abs=1e-9)
    bins = np.split(np.argsort(predicted), 8)  # 50 tokens each, no ties
    error = np.mean([abs(predicted[part].mean() - values[part].mean()) for part in bins])
    assert result["error"] == pytest.approx(error, abs=1e-8)


def test_calibration_by_hand():
    """Two rewards, so two numbers fit exactly: 0.2 and 0.8. The test responses have 0.3 and 0.6 instead."""
    fit = [np.array([-1.0, 1.0])], [np.array([0.2, 0.8])]
    rewards = [np.array([1.0, -1.0, -1.0]), np.array([-1.0])]
    values = [np.array([0.6, 0.3, 0.4]), np.array([0.2])]
    result = calibration(rewards, values, *fit)
    expected = {
        "error": (0.2 + 3 * 0.1) / 4,  # the three equal predictions share a group
        "brier": (0.2**2 + 0.1**2 + 0.2**2 + 0) / 4,
        "skill": 1 - 0.09 / (0.1**2 + 0.2**2 + 0.1**2 + 0.3**2),
        "slope": math.log(4),
    }
    assert result == pytest.approx(expected, abs=1e-8)
    assert calibration(rewards, values, *fit, bins=1)["error"] == pytest.approx(abs(1.4 - 1.5) / 4, abs=1e-8)


def test_calibration_of_rewards_that_say_nothing_or_everything(rng):
    values = [np.array([0.0, 0.1, 0.5]), np.array([1.0])]
    constant = [np.full(3, 0.1), np.full(1, 0.1)]
    other = [np.array([0.2, 0.2, 0.9, 0.3])]
    result = calibration([rng.normal(size=4)], other, constant, values)
    # The mean of the fit, 0.4, everywhere.
    assert result == pytest.approx({"error": 0.0, "brier": 0.085, "skill": 0.0, "slope": 0.0}, abs=1e-9)
    for n in range(2, 30):  # for some n the mean of n times 0.1 is not 0.1, and the standard deviation not 0
        flat = [np.full(n, 0.1)]
        result = calibration([rng.normal(size=4)], other, flat, [np.linspace(0, 0.8, n)])
        assert result == pytest.approx({"error": 0.0, "brier": 0.085, "skill": 0.0, "slope": 0.0}, abs=1e-9)
    sides = [np.array([0.0, 0.0, 1.0, 1.0])]
    result = calibration(sides, sides, sides, sides)
    assert result == pytest.approx({"error": 0, "brier": 0, "skill": 1, "slope": result["slope"]}, abs=1e-3)
    assert 5 < result["slope"] <= 50
    for level in (0.0, 1.0):
        flat = [np.full(4, level)]
        for rewards in (sides, [np.zeros(4)]):
            result = calibration(rewards, flat, rewards, flat)
            assert result["error"] < 1e-6 and result["brier"] < 1e-6 and math.isnan(result["skill"])


def test_calibration_refuses_what_is_no_probability():
    good, bad = [np.array([0.5]), np.array([0.1, 1.0])], [np.array([0.5]), np.array([0.1, 1.5])]
    for arguments in ((good, bad, good, good), (good, good, good, bad)):
        with pytest.raises(ValueError, match=r"response 1 has 1.5 in (fit_)?values at token 1: must be in \[0, 1\]"):
            calibration(*arguments)
    with pytest.raises(ValueError, match="bins 0: must be >= 1"):
        calibration(good, good, good, good, bins=0)


# Changes

NAN = float("nan")
REWARDS = [np.array([5.0, 6.0, 4.0, 4.5]), np.array([1.0, 1.0, 4.0])]
QUALITY = [np.array([NAN, 1, -1, NAN]), np.array([0, NAN, 0])]  # the first token has no change, so it counts nowhere


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


# What every measure refuses

PAIRED = [agreement_by_response, token_agreement, change_at_quality, localisation, smoothness]
PAIRED += [lambda a, b: partial_agreement(a, b, [np.ones((len(x), 1)) for x in a])]
PAIRED += [lambda a, b: calibration(a, b, REWARDS, REWARDS), lambda a, b: calibration(REWARDS, REWARDS, a, b)]


@pytest.mark.parametrize("measure", PAIRED)
def test_refusals_name_the_response(measure):
    ones = [np.ones(3), np.ones(4)]
    with pytest.raises(ValueError, match=r"response 1 has 4 \w+ but 3 \w+"):
        measure(ones, [ones[0], ones[1][:-1]])
    with pytest.raises(ValueError, match=r"rewards of 2 responses but \w+ of 1"):
        measure(ones, ones[:1])
    for empty in ([], [np.ones(0)]):
        with pytest.raises(ValueError, match=f"rewards of {len(empty)} responses hold no token"):
            measure(empty, empty)
    for bad in (float("nan"), float("inf")):
        broken = [ones[0], np.array([1, 1, bad, 1])]
        with pytest.raises(ValueError, match=rf"response 1 has {bad} in (fit_)?rewards at token 2: must be finite"):
            measure(broken, ones)


@pytest.mark.parametrize("measure", [change_at_quality, localisation])
def test_quality_is_minus_one_zero_one_or_nan(measure):
    with pytest.raises(ValueError, match=r"response 1 has 0.5 in quality at token 2: must be -1, 0, 1 or nan"):
        measure(REWARDS, [QUALITY[0], np.array([NAN, 1, 0.5])])


def test_results_are_plain_floats(rng, truth):
    values, _, quality, logprobs = map(list, zip(*truth, strict=True))
    rewards = [array.astype(np.float32) for array in noise_like(rng, values)]
    results = [
        token_agreement(rewards, values),
        partial_agreement(rewards, values, [array[:, None] for array in logprobs]),
        calibration(rewards, values, rewards, values),
        change_at_quality(rewards, quality),
        localisation(rewards, quality),
        smoothness(rewards, logprobs),
    ]
    assert [type(number) for result in results for number in result.values()] == [float] * 16


def test_what_is_left_without_controls_knows_nothing_of_them():
    rng = np.random.default_rng(0)
    controls = [rng.normal(size=(n, 2)) for n in (5, 9, 1)]
    noise = [rng.normal(size=n) for n in (5, 9, 1)]
    rewards = [3 + c @ [2.0, -1.0] + e for c, e in zip(controls, noise, strict=True)]
    left = without_controls(rewards, controls)
    assert [len(row) for row in left] == [5, 9, 1]
    flat, design = np.concatenate(left), np.column_stack([np.ones(15), np.concatenate(controls)])
    np.testing.assert_allclose(design.T @ flat, 0, atol=1e-9)
    explained = [row - c @ [2.0, -1.0] for row, c in zip(rewards, controls, strict=True)]
    again = without_controls(explained, controls)  # what is linear in the controls plays no part
    np.testing.assert_allclose(np.concatenate(again), flat, atol=1e-9)
    with pytest.raises(ValueError, match=r"\[5, 9, 1\] rewards have controls for \[9, 5, 1\]"):
        without_controls(rewards, [controls[1], controls[0], controls[2]])
