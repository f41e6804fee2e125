"""Counts over all rows of a source, for its report."""

from array import array
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import xxhash

from icrm_lib.preferences.forms import Reading

MUCH_REVERSED = 0.2  # share of the rated pairs; beyond it something is wrong with all of them
_ID_KEYS = ("id", "uid", "uuid")


class Tally:
    """Counts over all rows, at 16 bytes a row, and 8 an id: a row is known by a hash of its texts."""

    def __init__(self) -> None:
        self.rated, self.contrary = 0, 0
        self.elsewhere: Counter[str] = Counter()
        self.forms: Counter[str] = Counter()  # rows by the form that they were read as
        self.pairs: Counter[str] = Counter()  # pairs that they gave
        self.remarks: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        self.rows, self.opposites, self.ids = array("Q"), array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self.rows)

    def see(self, row: Any) -> None:
        """Take note of the id of a row of the source, be it kept or not."""
        if isinstance(row, dict) and (own := [row[key] for key in _ID_KEYS if row.get(key) is not None]):
            self.ids.append(xxhash.xxh3_64_intdigest(repr(own).encode()))

    def read(self, reading: Reading) -> None:
        """Count a row that was read."""
        self.forms[reading.form] += 1
        self.pairs[reading.form] += len(reading.pairs)
        self.remarks.update(reading.remarks)
        self.left_out.update(reading.left_out)

    def add(self, row: dict[str, Any]) -> None:
        """Count a row of the data set."""
        self.rated += row["margin"] is not None
        self.contrary += row["margin"] is not None and row["margin"] < 0
        sides = row["chosen"], row["rejected"]
        for hashes, (one, other) in ((self.rows, sides), (self.opposites, sides[::-1])):
            hashes.append(xxhash.xxh3_64_intdigest(f"{row['prompt_id']}{len(one)} {one}{other}".encode()))

    def warnings(self) -> list[str]:
        """Return what the report says first."""
        found = [
            f"text in {key!r} of {count} rows is left out, as ignore= says" for key, count in self.left_out.items()
        ]
        if self._is_reversed():
            found.append(
                f"{self.contrary} of {self.rated} rated pairs rate the chosen reply lower than the rejected one; are "
                "the two exchanged, or is a low number the better one?"
            )
        return found

    def _is_reversed(self) -> bool:
        return self.contrary > MUCH_REVERSED * self.rated

    def notes(self, ignored: Collection[str] = ()) -> list[str]:
        """Return what the report says about the rows that were kept; `ignored` are the columns that might be left "
        "out."""
        rows, opposites = np.array(self.rows), np.array(self.opposites)
        known, first = np.unique(rows, return_index=True)
        # Where the opposite of a row would stand among the known ones; an earlier row has it or none has.
        place = np.searchsorted(known, opposites) % max(len(known), 1)
        opposed = (known[place] == opposites) & (first[place] < np.arange(len(rows)))
        notes = [self._form(form) for form in self.forms if form]
        notes += [f"ignore= names {key!r}, which held no text" for key in ignored if key not in self.left_out]
        notes += [f"{count} rows left out: their prompt is in {name}" for name, count in self.elsewhere.items()]
        notes += [f"{count} rows: {remark}" for remark, count in self.remarks.items()]
        if 0 < self.rated < len(rows):
            notes.append(f"no margin column: only {self.rated} of {len(rows)} rows are rated")
        counts = {
            "rate the chosen reply lower than the rejected one (kept)": 0 if self._is_reversed() else self.contrary,
            "repeat an earlier row (kept)": len(rows) - len(known),
            "prefer the opposite of an earlier row (kept)": int(opposed.sum()),
            "have the id of an earlier row (ids decide nothing)": len(self.ids) - len(set(self.ids)),
        }
        return notes + [f"{count} rows {what}" for what, count in counts.items() if count]

    def _form(self, form: str) -> str:
        rows, pairs = self.forms[form], self.pairs[form]
        return f"read as {form}: {rows} rows" + (f", {pairs} pairs" if pairs != rows else "")
