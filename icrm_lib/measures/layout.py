"""Tokens of many responses in one table, and the correlations that all measures of tokens are made of."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import spearmanr


def lay_out(**columns: Sequence[np.ndarray]) -> pd.DataFrame:
    """Lay the tokens of all responses end to end: a column an argument, indexed by the number of the response."""
    (name, first), *others = columns.items()
    for other, arrays in others:
        if len(arrays) != len(first):
            raise ValueError(f"{name} of {len(first)} responses but {other} of {len(arrays)}; give one array each")
        for row, (a, b) in enumerate(zip(first, arrays, strict=True)):
            if len(a) != len(b):
                raise ValueError(f"response {row} has {len(a)} {name} but {len(b)} {other}: need one of each a token")
    lengths = [len(array) for array in first]
    if not sum(lengths):
        raise ValueError(f"{name} of {len(first)} responses hold no token; give at least one")
    data = {name: np.concatenate([np.asarray(a, dtype=float) for a in arrays]) for name, arrays in columns.items()}
    tokens = pd.DataFrame(data, index=np.repeat(np.arange(len(lengths)), lengths))
    for name in tokens:
        if name == "quality":  # nan says that the token reveals none
            refuse(tokens[name], tokens[name].isna() | tokens[name].isin([-1, 0, 1]), "-1, 0, 1 or nan")
        else:
            refuse(tokens[name], np.isfinite(tokens[name]), "finite; find where it came from before measuring")
    return tokens


def refuse(column: pd.Series, valid: pd.Series, rule: str) -> None:
    """Raise ValueError for the first token that is not valid."""
    for place in np.flatnonzero(~valid):
        row = column.index[place]
        token = place - np.searchsorted(column.index, row)
        raise ValueError(f"response {row} has {column.iloc[place]} in {column.name} at token {token}: must be {rule}")


def spearman(x: pd.Series, y: pd.Series) -> float:
    """Spearman correlation; nan, without a warning, if one side is constant."""
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return float("nan") if constant else float(spearmanr(x, y).statistic)


def ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def overall_and_within(tokens: pd.DataFrame, n: int) -> dict[str, float]:
    """Correlate the ranks of the two columns over all tokens, and on the mean inside each of n responses."""
    within = pd.Series(correlations_by_response(tokens, n)).mean()  # skips nan, and is nan when nothing else is there
    return {"overall": spearman(tokens.iloc[:, 0], tokens.iloc[:, 1]), "within": float(within)}


def correlations_by_response(tokens: pd.DataFrame, n: int) -> np.ndarray:
    """Spearman correlation of the two columns inside each of n responses, (n,); nan if a column is constant."""
    groups = tokens.groupby(level=0)
    # The mean rank is known. Subtracting it is exact, so a constant column leaves exact zeros, and 0 / 0 is nan.
    ranks = groups.rank().sub((groups[tokens.columns[0]].transform("size") + 1) / 2, axis=0)
    x, y = ranks.iloc[:, 0], ranks.iloc[:, 1]
    sums = pd.DataFrame({"xy": x * y, "xx": x * x, "yy": y * y}).groupby(level=0).sum().reindex(range(n))
    return (sums["xy"] / np.sqrt(sums["xx"] * sums["yy"])).to_numpy()
