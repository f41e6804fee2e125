"""Preference data: pairs and marked responses, refusals, splits, tokens; the data sets of the paper in `paper`."""

from icrm_lib.preferences.forms import LABEL_KEYS
from icrm_lib.preferences.loading import load_preferences, preference_rows
from icrm_lib.preferences.outcomes import tokenize_outcomes
from icrm_lib.preferences.prompts import hold_out, prompt_folds, split_by_prompt
from icrm_lib.preferences.report import Refusal, Report, read_reports, write_reports
from icrm_lib.preferences.responses import load_spans
from icrm_lib.preferences.spans import token_labels
from icrm_lib.preferences.tokens import BLOCK, Fitting, tokenize_fitting, tokenize_pairs

__all__ = [
    "LABEL_KEYS",
    "BLOCK",
    "Fitting",
    "Refusal",
    "Report",
    "hold_out",
    "load_preferences",
    "load_spans",
    "preference_rows",
    "prompt_folds",
    "read_reports",
    "split_by_prompt",
    "token_labels",
    "tokenize_fitting",
    "tokenize_outcomes",
    "tokenize_pairs",
    "write_reports",
]
