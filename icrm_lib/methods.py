"""The methods that are compared, by name: what each is called, and what it changes in the reward model's settings."""

from dataclasses import dataclass, replace
from typing import Any

from icrm_lib.profiles import RewardModelSettings
from icrm_lib.runtime import nearest


@dataclass(frozen=True)
class Method:
    """One way to train a reward model.

    Attributes:
        label: what tables, figures and notebooks call it.
        changes: settings of `profiles.RewardModelSettings` that differ from the profile's.
    """

    label: str
    changes: dict[str, Any]


# What a method changes in the profile's reward-model settings. A bare `{}` is ICRM as the profile has it.
_BT = {"consistency_weight": 0.0, "sft_weight": 0.0}
_PAIRS = {**_BT, "loss": "bradley_terry"}  # what has a meaning for pairs only, whatever the profile's loss
_GRM = {"consistency_weight": 0.0, "sft_weight": 0.01, "text_form": "grm_sft"}
_OUTCOME = {"loss": "outcome", "sft_weight": 0.0}
METHODS: dict[str, Method] = {
    # Baselines on whole responses (classifier, + margin, + label smoothing, ..., GRM)
    "bt": Method("Bradley-Terry", _BT),
    "bt_margin": Method("+ margin", {**_BT, "margin": True}),
    "bt_label_smoothing": Method("+ label smoothing", {**_PAIRS, "label_smoothing": 0.1}),
    "bt_positive": Method("+ positive regularisation", {**_PAIRS, "positive_weight": 0.1}),
    "bt_centered": Method("+ reward centring", {**_PAIRS, "center_rewards": 0.01}),
    "frozen_mlp": Method("Frozen backbone, MLP", {**_BT, "frozen_backbone": True, "head": "mlp"}),
    "grm_sft": Method("GRM (SFT)", _GRM),
    "grm_sft_mlp": Method("GRM (SFT), MLP", {**_GRM, "head": "mlp"}),
    "grm_dpo_noref": Method("GRM (DPO, no reference)", {**_GRM, "text_form": "grm_dpo_noref"}),
    "grm_dpo": Method("GRM (DPO)", {**_GRM, "text_form": "grm_dpo"}),
    "grm_as_in_icrm": Method(
        "ICRM without regulariser", {"consistency_weight": 0.0}
    ),  # ICRM's reference code with lambda = 0
    # ICRM and the controls of its weights
    "icrm": Method("ICRM", {}),
    "icrm_uniform": Method("ICRM, p = 1", {"weighting": "uniform"}),
    "icrm_shuffled": Method("ICRM, p shuffled", {"weighting": "shuffled"}),
    "icrm_random_pairs": Method("ICRM, random pairs", {"weighting": "random_pairs"}),
    "icrm_entropy": Method("ICRM, weights by entropy", {"weighting": "entropy"}),
    "icrm_top1_margin": Method("ICRM, weights by top-1 margin", {"weighting": "top1_margin"}),
    "icrm_inverted": Method("ICRM, weights inverted", {"weighting": "inverted"}),
    # other forms and centrings of the term
    "icrm_plain_log": Method("ICRM, no mutual weights", {"form": "plain_log"}),
    "icrm_l1": Method("ICRM, L1", {"form": "l1"}),
    "icrm_l2": Method("ICRM, L2", {"form": "l2"}),
    "icrm_centered_on_positions": Method(
        "ICRM, centred on all positions", {"centering": "positions", "padding_free": False}
    ),
    "icrm_not_centered": Method("ICRM, not centred", {"centering": "none"}),
    "martingale": Method("Martingale", {"form": "martingale", "weighting": "uniform"}),
    # labels per response or per clause instead of preferences
    "outcome": Method("Outcome labels", {**_OUTCOME, "consistency_weight": 0.0}),
    "outcome_icrm": Method("Outcome labels + ICRM", _OUTCOME),
    "prm": Method("Process labels", {"loss": "process", "sft_weight": 0.0, "consistency_weight": 0.0}),
    "prm_icrm": Method("Process labels + ICRM", {"loss": "process", "sft_weight": 0.0}),
}


def method_settings(settings: RewardModelSettings, method: str) -> RewardModelSettings:
    """Return the settings of a named method.

    Args:
        settings: the profile's.
        method: a name of `METHODS`.

    Raises:
        ValueError: unknown method; the message names the nearest.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; {nearest(method, list(METHODS))}")
    return replace(settings, **METHODS[method].changes)
