"""What became of the rows of a source: which were refused and why, and remarks about those that were kept."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from icrm_lib import records

REPORTS = "reports.json"


@dataclass(frozen=True)
class Refusal:
    """A row that was left out.

    Attributes:
        file: the source as the user gave it.
        line: line of a JSONL file, otherwise the row's number; both count from 1.
        reason: what is wrong, in words that are the same for all rows with this fault.
        remedy: what was found in this row, and what to do.
    """

    file: str
    line: int
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}; {self.remedy}"


@dataclass
class Report:
    """What became of the rows of a source; `print(report)` shows it as a short table.

    Attributes:
        source: the source as the user gave it (of an absolute path, the last part).
        kept: number of rows that can be used.
        refusals: one entry for each row left out, in the source's order.
        notes: remarks about rows that were kept (duplicates, contradictions, left-out columns).
    """

    source: str
    kept: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """Number of rows left out."""
        return len(self.refusals)

    def counts(self) -> dict[str, int]:
        """Return the number of refused rows for each reason, the most frequent first."""
        return dict(sorted(Counter(r.reason for r in self.refusals).items(), key=lambda item: (-item[1], item[0])))

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.kept} kept, {self.refused} refused"]
        if not (self.kept or self.refused or self.notes):
            lines.append("  it has no rows; check that it is the right one and was written to its end")
        for reason, count in self.counts().items():
            rows = [r for r in self.refusals if r.reason == reason]
            where = ", ".join(str(r.line) for r in rows[:5]) + (", ..." if count > 5 else "")
            lines += [f"  {count:>6}  {reason} (line {where})", f"          line {rows[0].line}: {rows[0].remedy}"]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def write_reports(folder: Path, reports: list[Report]) -> None:
    """Write `reports.json`."""
    records.write_json(folder / REPORTS, [asdict(report) for report in reports])


def read_reports(folder: Path) -> list[Report]:
    """Read what `write_reports` wrote."""
    return [
        Report(**{**values, "refusals": [Refusal(**refusal) for refusal in values["refusals"]]})
        for values in records.read_json(folder / REPORTS)
    ]
