"""What became of the rows of a source, from reading to tokens: kept, refused and why, cut, used."""

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from icrm_lib import records

REPORTS = "reports.json"
MUCH = 0.05  # of the rows; a loss beyond it stands out in the report


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
class Cut:
    """Prompts that lost their beginning, because the longer reply left no room for the whole prompt.

    Attributes:
        max_length: most tokens of a side.
        prompts: number of pairs whose prompt was cut.
        questions: of these, how many lost text of the last user turn, or all of it.
        systems: of these, how many lost text of their system turn, or all of it.
    """

    max_length: int
    prompts: int = 0
    questions: int = 0
    systems: int = 0

    def __str__(self) -> str:
        return (
            f"{self.prompts} prompts lost their beginning to fit into {self.max_length} tokens; of these "
            f"{self.questions} lost text of the question (the last user turn), {self.systems} of the system prompt"
        )


@dataclass
class Report:
    """What became of the rows of a source, from reading to tokens; `print(report)` shows it as a short table.

    Attributes:
        source: the source as the user gave it (of an absolute path, the last part).
        kept: number of rows that can be used, so far as the report goes: after reading, or after tokenising.
        refusals: one entry for each row left out for a fault or its length, in the source's order.
        notes: remarks about rows that were kept (duplicates, contradictions, left-out columns).
        warnings: remarks that nobody may miss; they are printed first.
        dropped: number of rows left out without a fault, by reason (ties, say).
        cut: prompts that did not fit whole; None before tokenising.
        unread: number of rows that were not tokenised, because there were pairs enough.
        used: pairs taken, by split; empty before there are splits.
    """

    source: str
    kept: int = 0
    refusals: list[Refusal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    cut: Cut | None = None
    unread: int = 0
    used: dict[str, int] = field(default_factory=dict)

    @property
    def refused(self) -> int:
        """Number of rows left out for a fault or their length."""
        return len(self.refusals)

    def counts(self) -> dict[str, int]:
        """Return the number of refused rows for each reason, the most frequent first."""
        return dict(sorted(Counter(r.reason for r in self.refusals).items(), key=lambda item: (-item[1], item[0])))

    def followed_by(self, *steps: "Report") -> "Report":
        """Return one report of the whole way: this one of reading, and those of tokenising what it kept.

        Args:
            steps: of `tokenize_pairs`, each of a part of the rows that were kept (the splits, say), together of all.
        """
        refusals = sorted([r for one in (self, *steps) for r in one.refusals], key=lambda refusal: refusal.line)
        cuts = [step.cut for step in steps if step.cut]
        return replace(
            self,
            kept=sum(step.kept for step in steps),
            refusals=refusals,
            notes=[*self.notes, *(note for step in steps for note in step.notes)],
            warnings=[*self.warnings, *(warning for step in steps for warning in step.warnings)],
            cut=_together(cuts) if cuts else None,
            unread=sum(step.unread for step in steps),
            used={split: count for step in steps for split, count in step.used.items()},
        )

    def alarms(self) -> list[str]:
        """Return what is printed first: `warnings`, and every loss of more than `MUCH` of the rows."""
        found, rows = [], self.kept + self.refused
        if self.kept and self.refused > MUCH * rows:  # without a row kept, its first line says so
            reason, count = next(iter(self.counts().items()))
            found.append(f"{_share(self.refused, rows)} rows are refused, {count} of them for: {reason}")
        if self.cut:
            for lost, what in ((self.cut.questions, "question"), (self.cut.systems, "system prompt")):
                if lost > MUCH * self.kept:
                    found.append(
                        f"{_share(lost, self.kept)} prompts lost text of their {what} to fit into "
                        f"{self.cut.max_length} tokens; raise max_length or leave the long rows out"
                    )
        return [*self.warnings, *found]

    def __str__(self) -> str:
        lines = [f"WARNING: {alarm}" for alarm in self.alarms()]
        lines.append(f"{self.source}: {self.kept} kept, {self.refused} refused")
        if not (self.kept or self.refused or self.notes or self.dropped):
            lines.append("  it has no rows; check that it is the right one and was written to its end")
        for reason, count in self.counts().items():
            rows = [r for r in self.refusals if r.reason == reason]
            where = ", ".join(str(r.line) for r in rows[:5]) + (", ..." if count > 5 else "")
            lines += [f"  {count:>6}  {reason} (line {where})", f"          line {rows[0].line}: {rows[0].remedy}"]
        lines += [f"  {count:>6}  {reason} (left out)" for reason, count in self.dropped.items() if count]
        if self.cut and self.cut.prompts:
            lines.append(f"  cut: {self.cut}")
        if self.used:
            lines.append(f"  used: {self._uses()}")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def _uses(self) -> str:
        parts = [f"{count} {split}" for split, count in self.used.items()]
        if spare := self.kept - sum(self.used.values()):
            parts.append(f"{spare} more would fit")
        if self.unread:
            parts.append(f"{self.unread} not looked at, there were enough")
        return ", ".join(parts)


def _together(cuts: list[Cut]) -> Cut:
    sums = {name: sum(getattr(cut, name) for cut in cuts) for name in ("prompts", "questions", "systems")}
    return Cut(cuts[0].max_length, **sums)


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({count / total:.0%})"


def write_reports(folder: Path, reports: list[Report]) -> None:
    """Write `reports.json`."""
    records.write_json(folder / REPORTS, [asdict(report) for report in reports])


def read_reports(folder: Path) -> list[Report]:
    """Read what `write_reports` wrote."""
    return [
        Report(
            **values
            | {"refusals": [Refusal(**refusal) for refusal in values["refusals"]]}
            | {"cut": Cut(**values["cut"]) if values["cut"] else None}
        )
        for values in records.read_json(folder / REPORTS)
    ]
