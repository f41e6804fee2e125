"""What a worked solution answers, and whether two answers are the same mathematics."""

import re
import threading
from collections.abc import Iterable
from functools import lru_cache

# Greek letters that math-verify takes for small ones; \Delta is another symbol than \delta.
_CAPITALS = re.compile(r"\\(?:Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega)(?![A-Za-z])")
_NUMBER = re.compile(r"(?<![\w.)])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def boxed_answer(solution: str) -> str | None:
    r"""Return what stands in the last `\boxed{...}`, braces inside it included; None without one, or if it stays open.

    Braces that LaTeX prints, `\{` and `\}`, do not count.
    """
    start = solution.rfind("\\boxed{")
    if start < 0:
        return None
    begin, depth = start + len("\\boxed{"), 1
    for brace in re.finditer(r"\\.|[{}]", solution[begin:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return solution[begin : begin + brace.start()]
    return None


def right_solutions(solutions: Iterable[str], truth: str) -> list[bool]:
    """Say of each solution whether its boxed answer is the problem's, however it is written (math-verify).

    Args:
        solutions: texts; one without a boxed answer is wrong.
        truth: the answer, LaTeX without a box.
    """
    answers = [boxed_answer(solution) for solution in solutions]
    known = {answer: _is_same(truth, answer) for answer in set(answers) - {None}}
    return [answer is not None and known[answer] for answer in answers]


def final_answers(solutions: Iterable[str]) -> list[str]:
    r"""Return what each solution ends on, in one way of writing for all that mean the same, so that they can vote.

    A solution ends on its last `\boxed{...}`, else its last number, else its last line. White space and case do not
    count, nor how a number is written: "1,200.00" and "1200" are one answer; but LaTeX commands keep their case. A
    boxed formula that is the same mathematics as a number or as an earlier formula is written like it (math-verify).
    """
    solutions = [solution.replace("\u2212", "-") for solution in solutions]  # the minus sign
    boxes = [boxed_answer(solution) for solution in solutions]
    answers = [_plain(_end(s) if box is None else box) for s, box in zip(solutions, boxes, strict=True)]
    written = {answer: answer for answer in answers if _NUMBER.fullmatch(answer)}
    for box, answer in zip(boxes, answers, strict=True):
        if box is not None and answer not in written and box not in written:
            written[box] = next((how for seen, how in written.items() if _is_same(seen, box)), answer)
    return [written.get(box, answer) for box, answer in zip(boxes, answers, strict=True)]


def _end(solution: str) -> str:
    numbers = _NUMBER.findall(solution)
    return numbers[-1] if numbers else (solution.strip().splitlines() or [""])[-1]


def _plain(answer: str) -> str:
    parts = re.split(r"(\\[A-Za-z]+)", answer)  # each second one is a LaTeX command
    answer = "".join(part if at % 2 else part.casefold() for at, part in enumerate(parts))
    answer = "".join(answer.split())
    return f"{float(answer.replace(',', '')) + 0.0:.12g}" if _NUMBER.fullmatch(answer) else answer


def _is_same(truth: str, answer: str) -> bool:
    """Whether an answer is the true one; both LaTeX without a box."""
    from math_verify import verify  # late: it loads a computer algebra system

    if answer.strip() == truth.strip():
        return True
    same_letters = set(_CAPITALS.findall(truth)) == set(_CAPITALS.findall(answer))
    return same_letters and verify(_parsed(truth), _parsed(answer), timeout_seconds=_seconds())


@lru_cache(1024)
def _parsed(answer: str) -> list:
    from math_verify import parse

    return parse(f"\\boxed{{{answer}}}", parsing_timeout=_seconds())


def _seconds() -> int | None:
    """Limit of math-verify's time; it uses a signal, which only the main thread has."""
    return 5 if threading.current_thread() is threading.main_thread() else None
