"""Ratings and labels of the two replies."""

import math
from decimal import Decimal
from typing import Any

from icrm_lib.rows import BadRow, type_name

RATING_KEYS = (
    ("chosen_rating", "rejected_rating"),
    ("chosen_score", "rejected_score"),
    ("score_chosen", "score_rejected"),
)
LABEL_KEYS = ("chosen_label", "rejected_label")  # 1 where the response is right, 0 where it is wrong


def rating_margin(row: dict) -> float | None:
    """Return by how much the chosen reply is rated higher, or None where the row does not say."""
    if row.get("margin") is not None:
        return as_number(row["margin"], "margin")
    for keys in RATING_KEYS:
        ratings = [as_number(row[key], key) for key in keys if row.get(key) is not None]
        if len(ratings) == 2:
            return ratings[0] - ratings[1]
    return None


def as_number(value: Any, key: str) -> float:
    """Return a finite number as a float; `key` is for the `BadRow` that anything else is."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):  # decimals come from Parquet
        found = f"str {value[:20]!r}" if isinstance(value, str) else type_name(value)
        raise BadRow(f"wrong type in {key!r}", f"found {found}; give a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BadRow(f"{key!r} is not finite", f"found {str(value)[:20]}; give a finite number or leave the rating out")
    return number
