"""Preference data: files to rows, refusals, splits, tokens; the data sets of the paper."""

from icrm_lib.preferences.loading import (
    PromptIds,
    Refusal,
    Report,
    load_preferences,
    preference_rows,
    split_by_prompt,
    tokenize_pairs,
)

__all__ = ["PromptIds", "Refusal", "Report", "load_preferences", "preference_rows", "split_by_prompt", "tokenize_pairs"]
