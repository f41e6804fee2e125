"""Rows of JSON Lines, JSON and Parquet files, each with its line; what cannot be read is the fault of a row or of the
file."""

from icrm_lib.rows.bad_row import BadRow, shown, type_name
from icrm_lib.rows.files import ENDINGS, ending, file_rows
from icrm_lib.rows.json_rows import json_lines

__all__ = ["ENDINGS", "BadRow", "ending", "file_rows", "json_lines", "shown", "type_name"]
