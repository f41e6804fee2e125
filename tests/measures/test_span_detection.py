"""Finding marked tokens: the areas against loops over all pairs, base rates, within responses, controls."""

import numpy as np
import pytest

from icrm_lib.measures import detection_by_response, detection_estimates, span_controls, span_detection
from icrm_lib.measures.spans import area_under_roc, average_precision


def drawn(seed=0, size=40, ties=8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, ties, size).astype(float), rng.random(size) < 0.3


@pytest.mark.parametrize("ties", [2, 8, 10_000])
def test_the_area_is_the_share_of_ordered_pairs(ties):
    scores, marked = drawn(ties=ties)
    pairs = [(a > b) + (a == b) / 2 for a in scores[marked] for b in scores[~marked]]
    assert area_under_roc(scores, marked) == pytest.approx(np.mean(pairs), abs=1e-12)


@pytest.mark.parametrize("ties", [2, 8, 10_000])
def test_average_precision_sums_over_thresholds(ties):
    scores, marked = drawn(1, ties=ties)
    total, before = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        found = scores >= threshold
        hits = (found & marked).sum()
        total += (hits - before) / marked.sum() * hits / found.sum()
        before = hits
    assert average_precision(scores, marked) == pytest.approx(total, abs=1e-12)
    assert average_precision(np.zeros(len(marked)), marked) == pytest.approx(marked.mean())


def test_perfect_reversed_and_impossible():
    marked = np.array([False, True, True, False])
    assert area_under_roc(marked.astype(float), marked) == average_precision(marked.astype(float), marked) == 1
    assert area_under_roc(-marked.astype(float), marked) == 0
    assert np.isnan(area_under_roc(np.zeros(4), np.ones(4, bool))) and np.isnan(area_under_roc(np.zeros(0), marked[:0]))
    assert average_precision(np.zeros(2), np.ones(2, bool)) == 1 and np.isnan(
        average_precision(np.zeros(2), marked[::3])
    )


def bits(text):
    return np.array([letter == "1" for letter in text])


def test_a_label_is_held_against_tokens_without_any():
    scores = [np.array([0.9, 0.1, 0.5, 0.2]), np.array([0.3, 0.4])]
    labels = {"a": [bits("1000"), bits("00")], "b": [bits("0010"), bits("11")]}
    table = span_detection(scores, labels)
    assert list(table.index) == ["any", "a", "b"] and table["tokens"].tolist() == [4, 1, 3]
    # Of "a": one token against the two that bear nothing; those of "b" are no wrong answers.
    assert table.loc["a", "base_rate"] == pytest.approx(1 / 3) and table.loc["a", "auroc"] == 1
    assert table.loc["b", "base_rate"] == pytest.approx(3 / 5) and table.loc["b", "auroc"] == 1
    assert table.loc["any", "base_rate"] == pytest.approx(4 / 6) and table.loc["any", "auroc"] == 1
    # The second response is marked all over, so it says nothing of the places within one.
    assert table["responses"].tolist() == [1, 1, 1] and table.loc["any", "base_rate_within"] == pytest.approx(0.5)


def test_within_responses_is_the_mean_over_those_with_both_kinds():
    rng = np.random.default_rng(2)
    scores = [rng.random(size) for size in (30, 20, 5, 8)]
    marked = [rng.random(len(row)) < 0.4 for row in scores[:2]] + [np.ones(5, bool), np.zeros(8, bool)]
    alone = [area_under_roc(*row) for row in zip(scores[:2], marked[:2], strict=True)]
    table = span_detection(scores, {"a": marked})
    assert table.loc["any", "auroc_within"] == pytest.approx(np.mean(alone)) and table.loc["any", "responses"] == 2
    assert table.loc["a"].equals(table.loc["any"])
    rows = detection_by_response(scores, {"a": marked}, "a")
    np.testing.assert_allclose(rows["auroc"], [*alone, np.nan, np.nan])
    assert rows["average_precision"].mean() == pytest.approx(table.loc["a", "average_precision_within"])
    # A constant a response changes nothing within, but much over all.
    moved = span_detection([row + 5 * i for i, row in enumerate(scores)], {"a": marked})
    assert moved.loc["a", "auroc_within"] == pytest.approx(table.loc["a", "auroc_within"])
    assert moved.loc["a", "auroc"] != pytest.approx(table.loc["a", "auroc"], abs=0.02)


def test_intervals_resample_prompts():
    rng = np.random.default_rng(5)
    scores = [rng.random(12) for _ in range(40)]
    marked = [row > rng.random(12) for row in scores]
    marked[7] = np.zeros(12, bool)  # says nothing within
    rows = detection_by_response(scores, {"a": marked})
    alone = detection_estimates(rows, np.arange(40))
    assert alone["auroc"].value == pytest.approx(span_detection(scores, {"a": marked}).loc["any", "auroc_within"])
    assert alone["auroc"].low < alone["auroc"].value < alone["auroc"].high
    # A prompt's responses are no further evidence when they repeat each other.
    twice = detection_estimates(rows.loc[[*range(40), *range(40)]], [*range(40), *range(40)])
    assert twice["auroc"] == pytest.approx(alone["auroc"])
    careless = detection_estimates(rows.loc[[*range(40), *range(40)]], range(80))["auroc"]
    assert careless.high - careless.low < alone["auroc"].high - alone["auroc"].low
    nothing = detection_estimates(rows.loc[[7]], ["a"])
    assert all(np.isnan(estimate.value) for estimate in nothing.values())
    with pytest.raises(ValueError, match="40 responses but 3 prompts"):
        detection_estimates(rows, [1, 2, 3])


def test_controls_know_no_text():
    controls = span_controls([3, 0, 2], seed=4)
    assert [row.tolist() for row in controls["position"]] == [[1 / 3, 2 / 3, 1], [], [0.5, 1]]
    assert [row.tolist() for row in controls["length"]] == [[3, 3, 3], [], [2, 2]]
    again = span_controls([3, 0, 2], seed=4)["random"]
    assert all((a == b).all() for a, b in zip(controls["random"], again, strict=True))
    late = [bits("000011"), bits("0001"), bits("1111")]
    tables = {name: span_detection(scores, {"a": late}) for name, scores in span_controls([6, 4, 4]).items()}
    assert tables["position"].loc["a", "auroc_within"] == 1
    assert tables["length"].loc["a", "auroc_within"] == 0.5
    assert tables["length"].loc["a", "average_precision_within"] == tables["length"].loc["a", "base_rate_within"]


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([], {}, "hold no token"),
        ([np.zeros(2)], {"any": [bits("01")]}, "called 'any'"),
        ([np.array([0.0, np.nan])], {"a": [bits("01")]}, "response 0 has a score that is not finite"),
        ([np.zeros(2)], {"a": [bits("010")]}, r"shape \(2,\) but 'a' of shape \(3,\).*closing token"),
        ([np.zeros(2)], {"a": [np.array([0, 1])]}, "need one bool a token"),
        ([np.zeros(2), np.zeros(1)], {"a": [bits("01")]}, "scores of 2 responses but 'a' of 1"),
    ],
)
def test_what_cannot_be_measured(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        span_detection(scores, labels)


def test_an_unknown_label():
    with pytest.raises(ValueError, match="no label 'b'; there are any, a"):
        detection_by_response([np.zeros(2)], {"a": [bits("01")]}, "b")
