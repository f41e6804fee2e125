"""What every measure of token rewards refuses and returns."""

import numpy as np
import pytest

from icrm_lib.measures import (
    agreement_by_response,
    change_at_quality,
    localisation,
    partial_agreement,
    smoothness,
    token_agreement,
    token_calibration,
)

VALUES = [np.array([0.5, 0.6, 0.4, 0.45]), np.array([0.1, 0.1, 0.4])]
PAIRED = [agreement_by_response, token_agreement, change_at_quality, localisation, smoothness]
PAIRED += [lambda a, b: partial_agreement(a, b, [np.ones((len(x), 1)) for x in a])]
PAIRED += [lambda a, b: token_calibration(a, b, VALUES, VALUES), lambda a, b: token_calibration(VALUES, VALUES, a, b)]


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


def test_results_are_plain_floats(rng, truth):
    values, _, quality, logprobs, _ = map(list, zip(*truth, strict=True))
    rewards = [array.astype(np.float32) for array in [rng.normal(size=len(array)) for array in values]]
    results = [
        token_agreement(rewards, values),
        partial_agreement(rewards, values, [array[:, None] for array in logprobs]),
        token_calibration(rewards, values, rewards, values),
        change_at_quality(rewards, quality),
        localisation(rewards, quality),
        smoothness(rewards, logprobs),
    ]
    assert [type(number) for result in results for number in result.values()] == [float] * 16
