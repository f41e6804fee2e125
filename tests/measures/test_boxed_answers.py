"""Boxed answers: the last one whole, and equal whenever mathematics says so."""

import pytest

from icrm_lib.measures.answers import boxed_answer, right_solutions


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} or rather \boxed{x_{2} + \sqrt{y^{3}}}", r"x_{2} + \sqrt{y^{3}}"),
        (r"\boxed{(1, 2\}} is half open", r"(1, 2\}"),
        (r"\boxed{1}, no, \boxed{\frac{1}{", None),  # cut off
        ("It is 7.", None),
        (r"\boxed{}", ""),
    ],
)
def test_the_answer_is_the_last_box_with_the_braces_inside_it(solution, answer):
    assert boxed_answer(solution) == answer


@pytest.mark.parametrize(
    ("truth", "right", "wrong"),
    [
        (r"\frac{1}{2}", [r"\dfrac12", "0.5", "1/2"], ["2", r"-\frac{1}{2}", ""]),
        (r"\text{Evelyn}", ["Evelyn", r"\text{Evelyn}"], [r"\text{Briana}"]),
        ("(3, \\frac{\\pi}{2})", [r"\left( 3, \frac{\pi}{2} \right)"], [r"(3, \frac{\pi}{3})"]),
        (r"2\sqrt{3}", [r"\sqrt{12}"], [r"2\sqrt{5}"]),
        ("10101_2", ["10101_{2}"], ["10111_2"]),
        ("1,200", ["1200"], ["1201"]),
    ],
)
def test_answers_are_compared_as_mathematics(truth, right, wrong):
    solutions = [f"Hence \\boxed{{{answer}}}" for answer in [*right, *wrong]]
    assert right_solutions([*solutions, f"{truth} it is"], truth) == [True] * len(right) + [False] * (len(wrong) + 1)
