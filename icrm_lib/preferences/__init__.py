"""Preference data: files to rows, refusals, splits, tokens; the data sets of the paper."""

from icrm_lib.preferences.loading import (
    LABEL_KEYS,
    PromptIds,
    Refusal,
    Report,
    collect_preferences,
    load_preferences,
    preference_rows,
    split_by_prompt,
    tokenize_pairs,
)

__all__ = [
    "LABEL_KEYS",
    "PromptIds",
    "Refusal",
    "Report",
    "collect_preferences",
    "load_preferences",
    "preference_rows",
    "split_by_prompt",
    "tokenize_pairs",
]
