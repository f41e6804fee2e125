"""What solutions answer, and which answers are the same."""

import pytest

from icrm_lib.measures.answers import boxed_answer, final_answers, right_solutions


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
        (r"\Delta x", [r"\Delta  x"], [r"\delta x"]),
    ],
)
def test_answers_are_compared_as_mathematics(truth, right, wrong):
    solutions = [f"Hence \\boxed{{{answer}}}" for answer in [*right, *wrong]]
    assert right_solutions([*solutions, f"{truth} it is"], truth) == [True] * len(right) + [False] * (len(wrong) + 1)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("She has 13 * 2 = $<<13*2=26>>26\nA: 26", "26"),
        ("so 1,200.00 in all", "1200"),
        (r"hence \boxed{-3.50}, not 7", "-3.5"),
        (r"thus \boxed{x^{2}} no, \boxed{\pi}", r"\pi"),
        ("It is\nParis ", "paris"),
        ("10", "10"),
        (r"so \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"so \boxed{ (1, 2) }", "(1,2)"),
        ("it is 10-3", "3"),
        ("a quarter: .25", "0.25"),
        ("so \u22123", "-3"),
        ("-0", "0"),
        (r"\boxed{never closed 7", "7"),
        ("", ""),
    ],
)
def test_a_solution_ends_on_its_answer(response, answer):
    assert final_answers([response]) == [answer]


@pytest.mark.parametrize(
    ("solutions", "answers"),
    [
        ([r"\boxed{(1, 2\}}"], [r"(1,2\}"]),  # a printed brace closes no box
        ([r"\boxed{\frac12}", r"\boxed{\dfrac{1}{2}}", "A: 0.5"], ["0.5"] * 3),
        ([r"\boxed{\sqrt{12}}", r"\boxed{2\sqrt{3}}", r"\boxed{\sqrt{3}}"], [r"\sqrt{12}"] * 2 + [r"\sqrt{3}"]),
        ([r"\boxed{1,200.00}", "so 1200"], ["1200", "1200"]),
        (["0.333333", "0.3333333", r"\boxed{0.33333333}"], ["0.333333", "0.3333333", "0.33333333"]),
        ([r"\boxed{\Delta X}", r"\boxed{\delta x}", r"\boxed{\Delta x}"], [r"\Deltax", r"\deltax", r"\Deltax"]),
        ([r"\boxed{\text{Paris}}", r"\boxed{Paris}", r"\boxed{Rome}"], [r"\text{paris}"] * 2 + ["rome"]),
    ],
)
def test_final_answers_that_mean_the_same_are_written_alike(solutions, answers):
    assert final_answers(solutions) == answers
