"""Numbers in prose, written from records: a comment says what a number is, and code writes the number.

In README.md, bench/README.md and the Markdown cells of a notebook a measured number stands before a comment that
names it; neither a browser nor a notebook shows the comment:

    ICRM reaches 0.52 [0.46, 0.57]<!-- = icrm | token agreement -->

What may stand behind `=`:

    icrm | token agreement                    mean of a variant; with brackets its 95 % interval
    icrm - bt | accuracy                      paired difference of two variants
    icrm & bt | accuracy                      mean of the first on the seeds that both have
    best_of_n: icrm | best of 64              the same from the records of another study ("policy:" likewise)
    verdict higher                            how many of the registered tests came out so; "verdict" alone: all
    bench: training_step | time_to.bt.icrm    median of a benchmark's record; with brackets its quartiles

The number keeps its shape: decimals, brackets, a percent sign, a leading plus, the sign of minus and a left-out
leading zero are those that stand there. `* 100` behind a measure writes points instead of shares.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from icrm_lib import records, runtime
from icrm_lib.report.cells import compare, estimate, load_cells
from icrm_lib.report.evidence import contrasts_table

_NUMBER = r"[+−-]?\d*\.?\d+"
MARKED = re.compile(rf"(?P<text>{_NUMBER}(?: \[{_NUMBER}, {_NUMBER}\])?)(?P<comment> ?%?<!-- = (?P<what>[^>]+?) -->)")
_MEASURED = re.compile(r"(?<![\w.])[+−-]?\d*\.\d+(?![\w.]*\.\w)")
_NO_PROSE = re.compile(r"<!--.*?-->|```.*?```|`[^`]*`|\$[^$]*\$|\]\([^)]*\)", re.DOTALL)
_cells = cache(load_cells)


@dataclass(frozen=True)
class Wrong:
    """A number in prose that the records do not give.

    Attributes:
        what: the comment behind it.
        found: what stands there.
        right: what the records say.
    """

    what: str
    found: str
    right: str


def fill(text: str, profile: str = "lab") -> tuple[str, list[Wrong]]:
    """Write every marked number of a text from the records.

    Args:
        text: Markdown.
        profile: whose records are read.

    Returns:
        the text with right numbers; what was wrong in it.

    Raises:
        ValueError: a comment names no variant, measure or record; the message says which.
    """
    wrong: list[Wrong] = []

    def written(match: re.Match) -> str:
        found, what = match["text"], match["what"]
        numbers = values(what, profile)
        right = shaped(found, numbers) if numbers else found
        if right != found:
            wrong.append(Wrong(what, found, right))
        return right + match["comment"]

    return MARKED.sub(written, text), wrong


def unmarked(text: str) -> list[str]:
    """Return the numbers with decimals that no comment names, code and links left out."""
    return _MEASURED.findall(_NO_PROSE.sub("", MARKED.sub("", text)))


@cache
def values(what: str, profile: str) -> tuple[float, ...]:
    """Return what a comment names: the value, and the ends of its interval where it has one.

    Nothing where a benchmark has no record yet: the number in the text stays.

    Raises:
        ValueError: see `fill`.
    """
    named, _, factor = (part.strip() for part in what.replace("\\|", "|").partition("*"))
    source, _, named = (part.strip() for part in named.rpartition(":"))
    subject, _, measure = (part.strip() for part in named.partition("|"))
    if subject.split()[0] == "verdict":
        verdicts, verdict = _verdicts(profile), subject.removeprefix("verdict").strip()
        found: tuple[float, ...] = (verdicts.count(verdict) if verdict else len(verdicts),)
    elif source == "bench":
        found = _bench(subject, measure)
    else:
        found = _evidence(source or "evidence", subject, measure, profile)
    return tuple(value * float(factor or 1) for value in found)


@cache
def _verdicts(profile: str) -> list[str]:
    return contrasts_table(_cells(profile, purpose="evidence"))["verdict"].tolist()


def _evidence(study: str, variants: str, measure: str, profile: str) -> tuple[float, ...]:
    cells = _cells(profile, purpose=study)
    first, sign, second = re.fullmatch(r"(.+?)(?: ([-&]) (.+))?", variants).groups()
    if missing := [name for name in (first, second) if name and name not in cells]:
        comment = f"{variants} | {measure}"
        raise ValueError(f"no records of {missing[0]!r} in {study}, which the comment `{comment}` names")
    if sign is None:
        return tuple(estimate(cells[first], measure))
    compared = compare(cells[first], cells[second], measure)
    return (compared.first,) if sign == "&" else tuple(compared.difference)


def _bench(script: str, keys: str) -> tuple[float, ...]:
    path = runtime.project_root() / "results" / "bench" / f"{script}.json"
    if not path.is_file():
        return ()
    value = records.read_json(path)["metrics"]
    for key in keys.split("."):
        if key not in value:
            comment = f"{script} | {keys}"
            raise ValueError(f"{key!r} is not in the record of bench/{script}.py, which the comment `{comment}` names")
        value = value[key]
    return tuple(value) if isinstance(value, list) else (value,)


def shaped(like: str, numbers: tuple[float, ...]) -> str:
    """Return numbers as text in the shape of another: "+0.9" gives "+1.2", ".52 [.46, .57]" gives ".48 [.41, .55]".

    Raises:
        ValueError: brackets without an interval to fill them.
    """
    patterns = re.findall(_NUMBER, like)
    if len(patterns) > len(numbers):
        raise ValueError(f"{like!r} has brackets, and there is no interval to write into them; take them out")
    waiting = iter(numbers)
    return re.sub(_NUMBER, lambda match: _in_shape(match[0], next(waiting)), like)


def _in_shape(like: str, number: float) -> str:
    text = f"{abs(number):.{len(like.partition('.')[2])}f}"
    if like.lstrip("+−-").startswith("."):
        text = text.removeprefix("0")
    is_zero = not text.strip("0.")
    sign = "−" if number < 0 and not is_zero else "+" if like.startswith("+") else ""
    return sign + text


def pages(root: Path) -> list[Path]:
    """Return the files whose prose holds marked numbers: the READMEs and the notebooks."""
    return [root / "README.md", root / "bench" / "README.md", *sorted((root / "notebooks").glob("*.ipynb"))]


def refill(path: Path, *, write: bool = True) -> list[Wrong]:
    """Write the marked numbers of a page, a Markdown file or a notebook; returns what was wrong.

    Args:
        path: of `pages`.
        write: else the file stays as it is.
    """
    text, wrong = path.read_text(encoding="utf-8"), []
    if path.suffix == ".ipynb":
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                source, found = fill("".join(cell["source"]))
                cell["source"], wrong = source.splitlines(keepends=True), [*wrong, *found]
        text = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
    else:
        text, wrong = fill(text)
    if wrong and write:
        records.write_bytes(path, text.encode())
    return wrong
