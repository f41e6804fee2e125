"""Scores of items: every response once by a model, and frames of scores as the official arithmetic reads them."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from icrm_lib.benchmarks.source import BenchmarkItems
from icrm_lib.runtime import nearest
from icrm_lib.tokenization import Conversation


def score_items(items: BenchmarkItems, score: Callable[[list[Conversation]], Sequence[float]]) -> pd.DataFrame:
    """Score every response of a benchmark, each different conversation once, all in one call.

    Args:
        items: of one of the loaders.
        score: takes N conversations, returns N numbers; e.g. `RewardModel.score`.

    Returns:
        the items with scores in place of conversations, in their order: what the benchmark's function in `benchmarks`
        takes. `responses` becomes `scores`.

    Raises:
        ValueError: `score` did not return one number a conversation.
    """
    columns = [name for name in ("chosen", "rejected", "responses") if name in items.frame]
    place: dict[tuple, int] = {}
    different: list[Conversation] = []

    def number(cell: list) -> int | list[int]:
        """Return the number of a conversation, in the order of the first appearance; of a list of them, the list."""
        if not isinstance(cell[0], dict):
            return [number(conversation) for conversation in cell]
        key = tuple((message["role"], message["content"]) for message in cell)
        if key not in place:
            place[key] = len(different)
            different.append(cell)
        return place[key]

    numbers = {name: [number(cell) for cell in items.frame[name]] for name in columns}
    scores = np.asarray(score(different), dtype=float)
    if scores.shape != (len(different),):
        raise ValueError(
            f"score returned shape {scores.shape} for {len(different)} conversations; return one number each"
        )
    scored = {name: [scores[at].tolist() for at in numbers[name]] for name in columns}
    return items.frame.assign(**scored).rename(columns={"responses": "scores"})


def numbered(frame: pd.DataFrame, name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return the frame with rows numbered from 0 and the name column as text; a missing column is an error."""
    for column in (name, *columns):
        if column not in frame:
            raise ValueError(
                f"the frame has no column {column!r}; it has {', '.join(map(str, frame.columns)) or 'none'}"
            )
    frame = frame.reset_index(drop=True)
    return frame.assign(**{name: [str(value) for value in frame[name]]})


def missing_names(names: pd.Series, wanted: Sequence[str], known: Sequence[str], partial: bool) -> set[str]:
    """Return the wanted names that are not there, an error unless `partial`; a name that is not known always is one."""
    for row in np.flatnonzero(~names.isin(known)):
        raise ValueError(f"row {row}: unknown {names.name} {names[row]!r}; {nearest(names[row], list(known))}")
    missing = [name for name in wanted if not (names == name).any()]
    if missing and not partial:
        raise ValueError(
            f"missing {names.name}: {', '.join(missing)}. The official score needs every one; "
            "partial=True scores the complete sections and says so"
        )
    return set(missing)


def all_scores(frame: pd.DataFrame, column: str, name: str, each: int | None = None) -> pd.Series:
    """Return all scores of a column as floats, lists laid end to end and indexed by their row."""
    values = frame[column].explode()
    scores = pd.to_numeric(values, errors="coerce").astype(float)
    for place in np.flatnonzero(~np.isfinite(scores)):
        row = scores.index[place]
        raise ValueError(
            f"row {row} ({name} {frame[name][row]!r}) has a score in {column!r} that is no finite number: "
            f"{values.iloc[place]!r}. Score it again or drop the run: leaving items out changes the benchmark"
        )
    counts = scores.groupby(level=0).size()
    for row in counts.index[counts != each] if each else ():
        raise ValueError(f"row {row} ({name} {frame[name][row]!r}) has {counts[row]} scores in {column!r}, not {each}")
    return scores


def flagged(result: dict, missing: set[str]) -> dict:
    """Return the result, marked partial when something is missing; one with nothing in it is an error."""
    if missing and not result:
        raise ValueError(f"no section is complete: missing {', '.join(sorted(missing))}")
    return result | {"partial": True} if missing else result
