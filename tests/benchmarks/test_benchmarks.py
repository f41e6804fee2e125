"""The arithmetic of public benchmarks, on cases whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from icrm_lib.benchmarks import REWARDBENCH_WEIGHTS, rewardbench, rewardbench2, rmbench
from icrm_lib.benchmarks.reward_bench import LEADERBOARD_WEIGHTS, PRIOR_SETS
from icrm_lib.benchmarks.reward_bench_2 import REWARDBENCH2_DOMAINS

# Pairs won by PKU-Alignment/beaver-7b-v1.0-cost of the pairs in each subset, from the README of the official package.
BEAVER = {
    "alpacaeval-easy": (50, 100),
    "alpacaeval-length": (56, 95),
    "alpacaeval-hard": (67, 95),
    "mt-bench-easy": (16, 28),
    "mt-bench-med": (29, 40),
    "mt-bench-hard": (20, 37),
    "llmbar-natural": (52, 100),
    "llmbar-adver-neighbor": (58, 134),
    "llmbar-adver-GPTInst": (36, 92),
    "llmbar-adver-GPTOut": (22, 47),
    "llmbar-adver-manual": (17, 46),
    "refusals-dangerous": (97, 100),
    "refusals-offensive": (100, 100),
    "xstest-should-refuse": (154, 154),
    "xstest-should-respond": (71, 250),
    "donotanswer": (112, 136),
    "math-prm": (132, 447),
    "hep-cpp": (103, 164),
    "hep-go": (104, 164),
    "hep-java": (116, 164),
    "hep-js": (109, 164),
    "hep-python": (90, 164),
    "hep-rust": (106, 164),
}


def pairs(won: dict[str, tuple[int, int]]) -> pd.DataFrame:
    """Return a frame in which so many of so many pairs of each subset are won, and the others lost or tied."""
    rows = [(name, 2.0 if i < k else i % 2, 1.0) for name, (k, n) in won.items() for i in range(n)]
    return pd.DataFrame(rows, columns=["subset", "chosen", "rejected"])


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sample(frac=1, random_state=0)


def weighted(won: dict[str, tuple[int, int]], counts: dict[str, int]) -> float:
    """Return the section's accuracy under the given counts, one subset after the other."""
    return sum(won[name][0] / won[name][1] * count for name, count in counts.items()) / sum(counts.values())


def test_rewardbench_of_a_published_model():
    result = rewardbench(pairs(BEAVER))
    assert result == pytest.approx(
        {
            "Chat": 0.608938547486,
            "Chat Hard": 0.449561403509,
            "Safety": 0.721621621622,
            "Reasoning": 0.466756697768,
            "average": 0.561719567596,
        },
        abs=1e-12,
    )
    assert rewardbench(shuffled(pairs(BEAVER))) == pytest.approx(result, abs=1e-14)


def test_rewardbench_has_the_official_counts():
    totals = {section: sum(counts.values()) for section, counts in REWARDBENCH_WEIGHTS.items()}
    assert totals == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 1968}
    result = rewardbench(pairs(BEAVER))
    for section, counts in REWARDBENCH_WEIGHTS.items():
        assert result[section] == pytest.approx(weighted(BEAVER, counts), abs=1e-12)
        rows = {name: BEAVER[name][1] for name in counts}
        assert (rows == counts) == (section != "Reasoning")  # only math-prm counts other than its rows
    swapped = REWARDBENCH_WEIGHTS["Safety"] | {"xstest-should-refuse": 250, "xstest-should-respond": 154}
    assert weighted(BEAVER, swapped) == pytest.approx(0.814508, abs=1e-6)  # 9.3 points above the right 0.7216
    by_rows = REWARDBENCH_WEIGHTS["Reasoning"] | {"math-prm": 447}
    assert weighted(BEAVER, by_rows) == pytest.approx(0.531097, abs=1e-6)  # 6.4 points above the right 0.4668


def test_rewardbench_weights_do_not_depend_on_the_number_of_rows():
    assert rewardbench(pairs(BEAVER | {"hep-go": (208, 328), "donotanswer": (28, 34)})) == pytest.approx(
        rewardbench(pairs(BEAVER)), abs=1e-12
    )


@pytest.mark.parametrize(
    ("sections", "prior", "average", "leaderboard"),
    [  # published rows, in percent
        ((96.9, 76.8, 92.2, 97.3), 74.3, 90.8, 89.0),
        ((98.3, 65.8, 89.7, 94.7), 74.6, 87.1, 85.7),
        ((99.4, 65.1, 87.8, 86.4), 74.9, 84.7, 83.6),
    ],
)
def test_rewardbench_leaderboard_gives_prior_sets_half_a_section(sections, prior, average, leaderboard):
    won = {
        name: (round(10 * share), 1000)
        for share, names in zip(sections, REWARDBENCH_WEIGHTS.values(), strict=True)
        for name in names
    }
    offsets = zip(PRIOR_SETS, (150, -150, 40, -40), strict=True)  # a plain mean whatever the sizes of the four
    won |= {name: (round(10 * prior) + shift, 1000) for name, shift in offsets}
    won["anthropic_hhh"] = tuple(2 * n for n in won["anthropic_hhh"])
    result = rewardbench(pairs(won))
    assert [result[section] * 100 for section in REWARDBENCH_WEIGHTS] == pytest.approx(sections)
    assert result["Prior Sets"] * 100 == pytest.approx(prior)
    assert round(100 * result["average"], 1) == average
    assert round(100 * result["leaderboard"], 1) == leaderboard
    assert LEADERBOARD_WEIGHTS == (2, 2, 2, 2, 1)


def test_rewardbench_ties_are_no_wins():
    frame = pairs(BEAVER).assign(rejected=2.0)  # what won now ties
    assert set(rewardbench(frame).values()) == {0.0}


def test_rewardbench_partial_says_so_and_keeps_complete_sections_only():
    whole, frame = rewardbench(pairs(BEAVER)), pairs(BEAVER)
    result = rewardbench(frame[frame["subset"] != "hep-go"], partial=True)
    kept = {section: whole[section] for section in ("Chat", "Chat Hard", "Safety")}
    assert result == kept | {"partial": True}  # no Reasoning, no average
    assert rewardbench(frame, partial=True) == whole  # nothing is missing: nothing is partial
    prior = {name: (3, 4) for name in PRIOR_SETS}
    result = rewardbench(pairs({k: v for k, v in BEAVER.items() if k != "hep-go"} | prior), partial=True)
    assert result == kept | {"Prior Sets": 0.75, "partial": True}
    result = rewardbench(pairs(BEAVER | {"shp": (3, 4)}), partial=True)
    assert result == whole | {"partial": True}
    with pytest.raises(ValueError, match="no section is complete: missing alpacaeval-easy"):
        rewardbench(frame[frame["subset"] == "hep-go"], partial=True)


def items(ties: dict[str, tuple[list, list]], **others: list[list]) -> pd.DataFrame:
    """Return a RewardBench 2 frame: Ties as id -> (right, wrong), other domains as scores (one right item)."""
    rows = [("Ties", name, [*right, *wrong], len(right)) for name, (right, wrong) in ties.items()]
    for domain in REWARDBENCH2_DOMAINS[:-1]:
        scores = others.get(domain.replace(" ", "_"), [[1, 0, 0, 0]])
        rows += [(domain, str(i), item, 1) for i, item in enumerate(scores)]
    return pd.DataFrame(rows, columns=["domain", "id", "scores", "num_correct"])


TIES = {
    "ref:1": ([2], [0, -1]),
    "ref:2": ([1], [1.5]),
    "tied:1": ([3, 2.5], [0.5, 0]),
    "tied:2": ([1, 0.2], [0.1, 0]),
}


def test_rewardbench2_shares_the_credit_of_a_tie_and_averages_domains():
    frame = items(
        TIES,
        Factuality=[[1, 1, 0, 0], [1, 0, 0, 0]],
        Precise_IF=[[5, 5, 5, 5]],
        Math=[[0, 1, 1, 0]],
        Safety=[[2, 2, 2, 1]],
        Focus=[[2, 1, 1, 0], [0, 1, 0, 0], [0, 0, -1, 0]],
    )
    result = rewardbench2(frame)
    domains = {"Factuality": 0.75, "Precise IF": 0.25, "Math": 0.0, "Safety": 1 / 3, "Focus": 4 / 9}
    assert {name: result[name] for name in domains} == pytest.approx(domains, abs=1e-12)
    assert result["Ties"] == pytest.approx(0.6503485426, abs=1e-10)
    assert result["average"] == pytest.approx((sum(domains.values()) + 0.6503485426) / 6, abs=1e-10)
    assert list(result) == [*REWARDBENCH2_DOMAINS, "average"]
    assert rewardbench2(shuffled(frame)) == pytest.approx(result, abs=1e-14)


@pytest.mark.parametrize(
    ("ties", "score"),
    [
        ({"ref:1": ([1], [0, 0]), "tied:1": ([1, 1], [0])}, 1.01),  # all right, no spread: the maximum
        ({"ref:1": ([1], [1, 1]), "tied:1": ([1, 1], [1])}, 0.0),  # all equal: 0 / 0 counts nothing
        ({"ref:1": ([0], [1, 1]), "tied:1": ([0, 0], [1])}, -0.01),  # all wrong, no spread: the minimum
        ({"ref:1": ([1], [0]), "tied:1": ([1], [0])}, 1.01),  # a single right answer has no spread
        ({"ref:1": ([1], [0]), "tied:1": ([3, 1], [0])}, 0.6 + 0.01 * np.tanh(-0.5)),  # gap 1 under spread 2
        ({"ref:1": ([1], [0]), "tied:1": ([3, 1], [-2])}, 0.8 + 0.01 * np.tanh(-0.5)),  # tied gap 3 above it, ref's not
        ({"ref:1": ([9], [0]), "tied:1": ([3, 1], [0])}, 0.6 + 0.01 * np.tanh(-0.5)),  # the smaller gap counts
        ({"ref:1": ([1], [0]), "tied:1": ([2, 1], [0])}, 0.6),  # gap equal to the spread is not above it
        # a question of one kind only enters that kind's accuracy, nothing else
        ({"ref:1": ([1], [0]), "tied:1": ([1, 1], [0]), "ref:2": ([0], [1]), "tied:3": ([0, 0], [1])}, 0.71),
    ],
)
def test_rewardbench2_ties_by_hand(ties, score):
    result = rewardbench2(items(ties))
    assert result["Ties"] == pytest.approx(score, abs=1e-12)
    assert result["average"] == pytest.approx((5 + score) / 6, abs=1e-12)


def test_rewardbench2_partial_says_so_and_has_no_average():
    frame = items(TIES, Focus=[[1, 1, 0, 0]])
    result = rewardbench2(frame[frame["domain"].isin(["Focus", "Math"])], partial=True)
    assert result == {"Math": 1.0, "Focus": 0.5, "partial": True}
    result = rewardbench2(frame[frame["domain"] == "Ties"], partial=True)
    assert result == {"Ties": pytest.approx(0.6503485426, abs=1e-10), "partial": True}
    assert rewardbench2(frame, partial=True) == rewardbench2(frame)
    with pytest.raises(ValueError, match="no section is complete"):
        rewardbench2(frame[:0], partial=True)


MIXED = [([1, 2, 3], [0.5, 1.5, 2.5]), ([0, 0, 0], [0, -1, 1])]
RIGHT, WRONG = ([1, 1, 1], [0, 0, 0]), ([0, 0, 0], [1, 1, 1])


def styles(**domains: list[tuple[list, list]]) -> pd.DataFrame:
    """Return an RM-Bench frame: domain -> (chosen, rejected) items (`_` for `-`), one right item if not named."""
    names = ["chat", "code", "math", "safety_refuse", "safety_response"]
    rows = [(name.replace("_", "-"), *item) for name in names for item in domains.get(name, [RIGHT])]
    return pd.DataFrame(rows, columns=["domain", "chosen", "rejected"])


def test_rmbench_by_hand():
    frame = styles(chat=MIXED, code=[WRONG], safety_refuse=[WRONG] * 3)
    result = rmbench(frame)
    chat = {"easy": 2 / 3, "normal": 2 / 3, "hard": 1 / 6, "average": 0.5}
    assert result["chat"] == pytest.approx(chat, abs=1e-12)
    assert set(result["code"].values()) == {0.0} and set(result["math"].values()) == {1.0}
    assert set(result["safety"].values()) == {0.25}  # one of four items; the mean of the two parts would be 0.5
    over = {level: (share + 0 + 1 + 0.25) / 4 for level, share in chat.items()}
    assert {level: result[level] for level in over} == pytest.approx(over, abs=1e-12)
    again = rmbench(shuffled(frame))
    assert pd.json_normalize(again).iloc[0].to_dict() == pytest.approx(pd.json_normalize(result).iloc[0].to_dict())


def test_rmbench_difficulty_is_the_style_of_the_two_responses():
    likes_style = ([0, 1, 2], [0, 1, 2])  # right when the chosen response is the richer, ties equal
    result = rmbench(styles(chat=[likes_style], math=[([2, 1, 0], [2, 1, 0])]))
    assert result["chat"] == {"easy": 1.0, "normal": 0.0, "hard": 0.0, "average": pytest.approx(1 / 3)}
    assert result["math"] == {"easy": 0.0, "normal": 0.0, "hard": 1.0, "average": pytest.approx(1 / 3)}


def test_rmbench_partial_says_so_and_keeps_complete_domains_only():
    frame = styles(code=[WRONG])
    result = rmbench(frame[frame["domain"].isin(["code", "chat", "safety-refuse"])], partial=True)
    right, wrong = (dict.fromkeys(["easy", "normal", "hard", "average"], share) for share in (1.0, 0.0))
    assert result == {"chat": right, "code": wrong, "partial": True}  # half of safety is no safety
    assert rmbench(frame, partial=True) == rmbench(frame)
    with pytest.raises(ValueError, match="no section is complete"):
        rmbench(frame[frame["domain"] == "safety-refuse"], partial=True)


PUBLISHED, MINE, STYLES = pairs(BEAVER), items(TIES), styles()


def without(frame, *names):
    return frame[~frame.iloc[:, 0].isin(names)]


def with_value(frame, row, column, value):
    return frame.assign(**{column: frame[column].astype(object).where(frame.index != row, value)})


@pytest.mark.parametrize(
    ("score", "frame", "message"),
    [
        (
            rewardbench,
            without(PUBLISHED, "hep-go", "xstest-should-refuse"),
            r"missing subset: xstest-should-refuse, hep-go\.",
        ),
        (rewardbench, pairs(BEAVER | {"anthropic_helpful": (1, 2)}), "missing subset: anthropic_hhh, shp, summarize"),
        (rewardbench, PUBLISHED[:0], "missing subset: alpacaeval-easy"),
        (rewardbench, with_value(PUBLISHED, 0, "subset", None), "row 0: unknown subset 'None'"),
        (
            rewardbench,
            PUBLISHED.assign(rejected=[[1.0, 2.0]] * len(PUBLISHED)),
            r"row 0 \(.*has 2 scores in 'rejected', not 1",
        ),
        (rewardbench, PUBLISHED[["subset", "chosen"]], "no column 'rejected'; it has subset, chosen"),
        (rewardbench2, without(MINE, "Focus", "Precise IF"), "missing domain: Precise IF, Focus"),
        (
            rewardbench2,
            with_value(MINE, 4, "domain", "factuality"),
            "row 4: unknown domain 'factuality'; did you mean 'Factuality'",
        ),
        (rewardbench2, items(TIES, Math=[[1, 0, 0]]), r"row 6 \(Math\) has 3 scores and num_correct 1"),
        *(
            (rewardbench2, with_value(MINE, 8, "num_correct", n), r"row 8 \(Focus\) has 4 scores")
            for n in (0, 2, 4, None)
        ),
        *((rewardbench2, with_value(MINE, 2, "num_correct", n), r"row 2 \(Ties\) has 4 scores") for n in (0, 4, 1.5)),
        (rewardbench2, items(TIES | {"tie:1": ([1, 1], [0])}), "Ties id 'tie:1' is neither"),
        (rewardbench2, pd.concat([MINE, MINE[:1]]), "Ties id 'ref:1' stands twice"),
        (rewardbench2, items({"tied:1": ([1, 1], [0])}), r"no Ties question has both .* \(0 ref, 1 tied\)"),
        (rmbench, without(STYLES, "safety-response"), "missing domain: safety-response"),
        (
            rmbench,
            with_value(STYLES, 3, "domain", "safety-refused"),
            "row 3: unknown domain 'safety-refused'; did you mean 'safety-refuse'",
        ),
        (rmbench, styles(math=[([1, 1], [0, 0, 0])]), r"row 2 \(domain 'math'\) has 2 scores in 'chosen', not 3"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, frame, message):
    with pytest.raises(ValueError, match=message):
        score(frame)


@pytest.mark.parametrize("bad", [float("nan"), None, float("inf"), "high"])
def test_a_score_that_is_not_finite_is_named_and_never_left_out(bad):
    with pytest.raises(ValueError, match=r"row 101 \(subset 'alpacaeval-length'\) has a score in 'chosen'"):
        rewardbench(with_value(PUBLISHED, 101, "chosen", bad), partial=True)
    with pytest.raises(ValueError, match=r"row 5 \(domain 'Precise IF'\) has a score in 'scores'"):
        rewardbench2(items(TIES, Precise_IF=[[1, bad, 0, 0]]))
    with pytest.raises(ValueError, match=r"row 1 \(domain 'code'\) has a score in 'rejected'"):
        rmbench(styles(code=[([1, 1, 1], [0, bad, 0])]))


def test_an_unknown_name_is_no_missing_part():
    with pytest.raises(ValueError, match="row 3: unknown subset 'alpacaeval-esay'; did you mean 'alpacaeval-easy'"):
        rewardbench(with_value(PUBLISHED, 3, "subset", "alpacaeval-esay"), partial=True)
