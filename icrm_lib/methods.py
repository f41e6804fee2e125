"""The methods that are compared, by name: what each is called, what it changes, where it is compared, what is tuned."""

from dataclasses import dataclass, replace
from typing import Any

from icrm_lib.profiles import RewardModelSettings
from icrm_lib.runtime import nearest


@dataclass(frozen=True)
class Knob:
    """A setting that is tuned beside the learning rate.

    Attributes:
        setting: of `profiles.RewardModelSettings`.
        ladder: the values that tuning may try, rising.
        first: where it starts: an index of the ladder, and the one after.
    """

    setting: str
    ladder: tuple[float, ...]
    first: int


@dataclass(frozen=True)
class Method:
    """One way to train a reward model.

    Attributes:
        label: what tables, figures and notebooks call it.
        changes: settings of `profiles.RewardModelSettings` that differ from the profile's.
        study: the comparison of `lab.cells` that trains it; "main" lists its own members.
        knob: the setting that is tuned beside the learning rate; None where there is none.
        tuned_as: the method whose tuned settings it takes over; its own when empty.
    """

    label: str
    changes: dict[str, Any]
    study: str
    knob: Knob | None = None
    tuned_as: str = ""


_BT = {"consistency_weight": 0.0, "sft_weight": 0.0}
_PAIRS = {**_BT, "loss": "bradley_terry"}  # what has a meaning for pairs only, whatever the profile's loss
_GRM = {"consistency_weight": 0.0, "sft_weight": 0.01, "text_form": "grm_sft"}
_OUTCOME = {"loss": "outcome", "sft_weight": 0.0}
_PROCESS = {"loss": "process", "sft_weight": 0.0}
_LAMBDA = Knob("consistency_weight", (0.05, 0.1, 0.3, 0.6, 0.8, 0.9, 0.95), first=2)
_ALPHA = Knob("sft_weight", (0.001, 0.01, 0.1, 0.5), first=1)
_PENALTY = (0.001, 0.01, 0.1, 1.0)
METHODS: dict[str, Method] = {
    # Baselines on whole responses (classifier, + margin, + label smoothing, ..., GRM)
    "bt": Method("Bradley-Terry", _BT, "main"),
    "bt_margin": Method("+ margin", {**_BT, "margin": True}, "objectives"),
    "bt_label_smoothing": Method(
        "+ label smoothing",
        {**_PAIRS, "label_smoothing": 0.1},
        "objectives",
        Knob("label_smoothing", (0.05, 0.1, 0.2, 0.3, 0.4), 1),
    ),
    "bt_positive": Method(
        "+ positive regularisation",
        {**_PAIRS, "positive_weight": 0.1},
        "objectives",
        Knob("positive_weight", _PENALTY, 1),
    ),
    "bt_centered": Method(
        "+ reward centring", {**_PAIRS, "center_rewards": 0.01}, "objectives", Knob("center_rewards", _PENALTY, 1)
    ),
    "mean_token_bt": Method("Bradley-Terry, mean of the tokens", {**_BT, "pooling": "mean"}, "objectives"),
    "frozen_mlp": Method("Frozen backbone, MLP", {**_BT, "frozen_backbone": True, "head": "mlp"}, "objectives"),
    "grm_sft": Method("GRM (SFT)", _GRM, "main", _ALPHA),
    "grm_sft_mlp": Method("GRM (SFT), MLP", {**_GRM, "head": "mlp"}, "objectives", tuned_as="grm_sft"),
    "grm_dpo_noref": Method("GRM (DPO, no reference)", {**_GRM, "text_form": "grm_dpo_noref"}, "objectives", _ALPHA),
    "grm_dpo": Method("GRM (DPO)", {**_GRM, "text_form": "grm_dpo"}, "objectives", _ALPHA),
    # ICRM's reference code with lambda = 0
    "grm_as_in_icrm": Method(
        "ICRM without regulariser",
        {"consistency_weight": 0.0},
        "objectives",
        Knob("sft_weight", (1e-4, 0.001, 0.01, 0.1, 1.0), 1),
    ),
    # ICRM as the profile has it, and the controls of its weights
    "icrm": Method("ICRM", {}, "main", _LAMBDA),
    "icrm_uniform": Method("ICRM, p = 1", {"weighting": "uniform"}, "main", _LAMBDA),
    "icrm_shuffled": Method("ICRM, p shuffled", {"weighting": "shuffled"}, "main", _LAMBDA),
    "icrm_random_pairs": Method("ICRM, random pairs", {"weighting": "random_pairs"}, "weightings", tuned_as="icrm"),
    "icrm_entropy": Method("ICRM, weights by entropy", {"weighting": "entropy"}, "weightings", tuned_as="icrm"),
    "icrm_top1_margin": Method(
        "ICRM, weights by top-1 margin", {"weighting": "top1_margin"}, "weightings", tuned_as="icrm"
    ),
    "icrm_inverted": Method("ICRM, weights inverted", {"weighting": "inverted"}, "weightings", tuned_as="icrm"),
    # other forms and centrings of the term
    "icrm_plain_log": Method("ICRM, no mutual weights", {"form": "plain_log"}, "forms", _LAMBDA),
    "icrm_l1": Method("ICRM, L1", {"form": "l1"}, "forms", _LAMBDA),
    "icrm_l2": Method("ICRM, L2", {"form": "l2"}, "forms", _LAMBDA),
    "martingale": Method("Martingale", {"form": "martingale", "weighting": "uniform"}, "forms", _LAMBDA),
    "td_lambda": Method("TD(lambda)", {"form": "td_lambda", "weighting": "uniform"}, "forms", _LAMBDA),
    "dense_bt": Method("Bradley-Terry at every token", {"form": "dense", "weighting": "uniform"}, "forms", _LAMBDA),
    "expected": Method("Expected consistency", {"form": "expected", "weighting": "uniform"}, "forms", _LAMBDA),
    "icrm_centered_on_positions": Method(
        "ICRM, centred on all positions",
        {"centering": "positions", "padding_free": False, "prefix_sharing": False},
        "forms",
        tuned_as="icrm",
    ),
    "icrm_not_centered": Method("ICRM, not centred", {"centering": "none"}, "forms", tuned_as="icrm"),
    # labels per response or per clause instead of preferences
    "outcome": Method("Outcome labels", {**_OUTCOME, "consistency_weight": 0.0}, "objectives"),
    "outcome_icrm": Method("Outcome labels + ICRM", _OUTCOME, "objectives", _LAMBDA),
    "prm": Method("Process labels", {**_PROCESS, "consistency_weight": 0.0}, "objectives"),
    "prm_icrm": Method("Process labels + ICRM", _PROCESS, "objectives", _LAMBDA),
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
