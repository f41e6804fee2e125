"""The numbers in prose are those of the records, and none is typed by hand."""

import json

import pytest

from icrm_lib import records, runtime
from icrm_lib.report import prose

ROOT = runtime.project_root()
PAGES = {path.relative_to(ROOT).as_posix(): path for path in prose.pages(ROOT)}
# Where prose reports records. Constants stand in $...$ or `...`, everything measured before a comment.
NOUNS = ("06_best_of_n", "07_dpo", "08_tables", "09_heatmaps", "10_evidence")
REPORTS = ["README.md", *(f"notebooks/{noun}.ipynb" for noun in NOUNS)]


def markdown(path):
    """The prose of a page; of README.md the section on results alone."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return text.partition("## What comes out\n")[2].partition("\n## ")[0] if path == PAGES["README.md"] else text


@pytest.mark.parametrize("page", PAGES)
def test_every_marked_number_is_what_the_records_say(page):
    assert prose.refill(PAGES[page], write=False) == []


@pytest.mark.parametrize("page", REPORTS)
def test_no_measured_number_is_typed_by_hand(page):
    assert prose.unmarked(markdown(PAGES[page])) == []


def test_the_marks_are_there():
    assert sum(prose.MARKED.findall(markdown(path)) != [] for path in PAGES.values()) >= 4


@pytest.mark.parametrize(
    ("like", "numbers", "text"),
    [
        ("0.52", (0.4849, 0.4, 0.6), "0.48"),
        (".52 [.46, .57]", (0.4849, 0.406, -0.6), ".48 [.41, −.60]"),
        ("+0.9", (1.24,), "+1.2"),
        ("+0.9", (-1.24,), "−1.2"),
        ("−0.30", (0.304,), "0.30"),
        ("79", (81,), "81"),
        ("0.00", (-0.0004,), "0.00"),
        ("−.2", (-1.55,), "−1.6"),
    ],
)
def test_a_number_keeps_its_shape(like, numbers, text):
    assert prose.shaped(like, numbers) == text


def test_brackets_without_an_interval_are_refused():
    with pytest.raises(ValueError, match="no interval"):
        prose.shaped("0.5 [0.4, 0.6]", (0.5,))


def test_a_wrong_number_is_found_and_written(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("ICRM 9.99<!-- = icrm | token agreement --> and `0.5` of 3.\n", encoding="utf-8")
    (wrong,) = prose.refill(page, write=False)
    assert wrong.found == "9.99" and "9.99" in page.read_text(encoding="utf-8")
    prose.refill(page)
    assert page.read_text(encoding="utf-8") == f"ICRM {wrong.right}<!-- = icrm | token agreement --> and `0.5` of 3.\n"
    assert prose.refill(page) == []


def test_a_number_of_a_benchmark_waits_for_its_record(tmp_path, monkeypatch):
    text, what = "within 3 %<!-- = bench: {} -->, {}", "made_up | deep.percent"
    text = text.format(what, "0.9 [0.8, 1.1]<!-- = bench: made_up | ratio -->")
    (tmp_path / "icrm_lib").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    prose.values.cache_clear()
    assert prose.fill(text) == (text, [])
    record = {"deep": {"percent": 4}, "ratio": [1.02, 0.95, 1.1]}
    records.write_json(tmp_path / "results" / "bench" / "made_up.json", {"metrics": record})
    prose.values.cache_clear()
    assert prose.fill(text)[0] == text.replace("3 %", "4 %").replace("0.9 [0.8, 1.1]", "1.0 [0.9, 1.1]")
    with pytest.raises(ValueError, match="'shallow' is not in the record of bench/made_up.py"):
        prose.fill("1<!-- = bench: made_up | shallow -->")


def test_points_and_common_seeds():
    (share, *_), (points, *_) = (prose.values(f"icrm - bt | accuracy{end}", "lab") for end in ("", " * 100"))
    assert points == pytest.approx(100 * share)
    assert prose.values("icrm & bt | accuracy", "lab") != prose.values("bt & icrm | accuracy", "lab")


@pytest.mark.parametrize("what", ["icmr | accuracy", "icrm - btt | accuracy", "policy: implicit | dpo, greedy"])
def test_a_comment_that_names_nothing_is_refused(what):
    with pytest.raises(ValueError, match="no records of"):
        prose.values(what, "lab")


def test_what_is_no_measurement_needs_no_comment():
    assert prose.unmarked("at $0.05$, `0.1`, 3 of 4, [x](a/0.5.png), 0.7<!-- = icrm | longer -->, 0.3 and 1.5") == [
        "0.3",
        "1.5",
    ]
