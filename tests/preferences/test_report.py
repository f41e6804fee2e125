"""The report of a source: what stands first, and one account from reading to tokens."""

import pytest

from icrm_lib.preferences import Refusal, Report, read_reports, write_reports
from icrm_lib.preferences.report import Cut


def refused(count, reason="missing key 'chosen'", first=1):
    return [Refusal("a.jsonl", first + i, reason, "add it") for i in range(count)]


@pytest.mark.parametrize(
    ("report", "alarm"),
    [
        (Report("a", 95, refused(5)), None),
        (Report("a", 94, refused(6)), "6 of 100 (6%) rows are refused, 6 of them for: missing key 'chosen'"),
        (Report("a", 100, cut=Cut(64, prompts=100, questions=5, systems=5)), None),
        (Report("a", 100, cut=Cut(64, 100, questions=6)), "6 of 100 (6%) prompts lost text of their question to fit"),
        (Report("a", 100, cut=Cut(64, 100, systems=6)), "6 of 100 (6%) prompts lost text of their system prompt to"),
        (Report("a", 9, warnings=["text of 'context' is not read"]), "text of 'context' is not read"),
        (Report("a", 94, dropped={"ties": 6}), None),
    ],
)
def test_a_loss_of_more_than_a_twentieth_stands_first(report, alarm):
    first = str(report).splitlines()[0]
    assert first.startswith(f"WARNING: {alarm}" if alarm else "a: ")


def test_a_report_goes_on_with_those_of_its_parts():
    read = Report("a.jsonl", 8, refused(2, first=4), notes=["1 rows repeat an earlier row (kept)"], dropped={"ties": 3})
    parts = [
        Report("a.jsonl", 3, refused(1, "reply too long", 2), cut=Cut(64, 3, 2, 1), unread=1),
        Report("a.jsonl", 2, refused(1, "reply too long", 9), cut=Cut(64, 1, 0, 1)),
    ]
    whole = read.followed_by(*parts)
    assert (read.kept, read.refused, read.unread) == (8, 2, 0)  # stays as it is
    assert (whole.kept, whole.unread, whole.cut) == (5, 1, Cut(64, 4, 2, 2))
    assert [refusal.line for refusal in whole.refusals] == [2, 4, 5, 9]
    assert whole.kept + whole.refused + whole.unread == read.kept + read.refused
    whole.used = {"train": 2, "test": 2}
    assert str(whole).splitlines() == [
        "WARNING: 4 of 9 (44%) rows are refused, 2 of them for: missing key 'chosen'",
        "WARNING: 2 of 5 (40%) prompts lost text of their question to fit into 64 tokens; raise max_length or leave "
        "the long rows out",
        "WARNING: 2 of 5 (40%) prompts lost text of their system prompt to fit into 64 tokens; raise max_length or "
        "leave the long rows out",
        "a.jsonl: 5 kept, 4 refused",
        "       2  missing key 'chosen' (line 4, 5)",
        "          line 4: add it",
        "       2  reply too long (line 2, 9)",
        "          line 2: add it",
        "       3  ties (left out)",
        "  cut: 4 prompts lost their beginning to fit into 64 tokens; of these 2 lost text of the question (the last "
        "user turn), 2 of the system prompt",
        "  used: 2 train, 2 test, 1 more would fit, 1 not looked at, there were enough",
        "  note: 1 rows repeat an earlier row (kept)",
    ]


def test_reports_are_read_as_they_were_written(tmp_path):
    reports = [
        Report("a", 3, refused(2), ["n"], ["w"], {"ties": 1}, Cut(64, 3, 2, 1), 4, {"train": 3}),
        Report("b"),
    ]
    write_reports(tmp_path, reports)
    assert read_reports(tmp_path) == reports
