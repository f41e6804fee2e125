"""Order: token rewards against a known truth, each measure against a naive one and on the testbed."""

import math

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from icrm_lib.measures.tokens import agreement_by_response, partial_agreement, token_agreement, without_controls

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def noise_like(rng, arrays):
    return [rng.normal(size=len(array)) for array in arrays]


def with_ties(rng, lengths):
    return [rng.integers(0, 4, size=n).astype(float) for n in lengths]


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
