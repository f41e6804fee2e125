"""Boxed answers of worked solutions, compared as mathematics."""

import re
import threading
from collections.abc import Iterable

NUMBER = re.compile(r"(?<![\w.)])-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


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


def final_answer(response: str) -> str:
    r"""Return what a worked solution ends on: its last `\boxed{...}` whole, else its last number, else its last line.

    White space and case do not count, nor how a number is written: "1,200.00" and "1200" are one answer. Formulas are
    compared as text, so two ways to write one formula are two answers.
    """
    response = response.replace("\u2212", "-")  # the minus sign
    answer = boxed_answer(response)
    if answer is None:
        numbers = NUMBER.findall(response)
        answer = numbers[-1] if numbers else (response.strip().splitlines() or [""])[-1]
    answer = "".join(answer.split()).casefold()
    if NUMBER.fullmatch(answer):
        number = float(answer.replace(",", ""))
        return f"{number + 0.0:.12g}"
    return answer


def right_solutions(solutions: Iterable[str], truth: str) -> list[bool]:
    """Say of each solution whether its boxed answer is the problem's, however it is written.

    Args:
        solutions: texts; one without a boxed answer is wrong.
        truth: the answer, LaTeX without a box.
    """
    from math_verify import parse, verify  # late: it loads a computer algebra system

    # Its limits on time use a signal, which only the main thread has.
    seconds = 5 if threading.current_thread() is threading.main_thread() else None
    want, known = parse(f"\\boxed{{{truth}}}", parsing_timeout=seconds), {}
    answers = [boxed_answer(solution) for solution in solutions]
    for answer in set(answers) - {None}:
        found = parse(f"\\boxed{{{answer}}}", parsing_timeout=seconds)
        known[answer] = answer.strip() == truth.strip() or verify(want, found, timeout_seconds=seconds)
    return [answer is not None and known[answer] for answer in answers]
