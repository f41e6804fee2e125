"""Preference data: rows to pairs, refusals, splits, tokens; the data sets of the paper in `preferences.paper`."""

from icrm_lib.preferences.forms import LABEL_KEYS
from icrm_lib.preferences.loading import load_preferences, preference_rows
from icrm_lib.preferences.prompts import split_by_prompt
from icrm_lib.preferences.report import Refusal, Report, read_reports, write_reports
from icrm_lib.preferences.tokens import BLOCK, Fitting, tokenize_fitting, tokenize_pairs

__all__ = [
    "LABEL_KEYS",
    "BLOCK",
    "Fitting",
    "Refusal",
    "Report",
    "load_preferences",
    "preference_rows",
    "read_reports",
    "split_by_prompt",
    "tokenize_fitting",
    "tokenize_pairs",
    "write_reports",
]
