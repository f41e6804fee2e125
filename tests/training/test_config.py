"""Settings of a training: presets are the profile's, and what is out of range or does not go together is refused."""

import dataclasses

import pytest
from trl import RewardConfig

from icrm_lib.profiles import RewardModelSettings
from icrm_lib.training import ICRMConfig


def test_settings_of_the_profile_are_named_and_preset_as_in_the_trainer(config):
    preset = {item.name: item.default for item in dataclasses.fields(RewardModelSettings)}
    ours = {item.name for item in dataclasses.fields(ICRMConfig)} - {i.name for i in dataclasses.fields(RewardConfig)}
    args = config()
    assert ours - set(preset) == {"scale_decay", "scale_start", "trained_length"}
    assert all(getattr(args, name) == preset[name] for name in ours & set(preset))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"consistency_weight": 1.0}, "consistency_weight"),
        ({"consistency_weight": -0.1}, "consistency_weight"),
        ({"sft_weight": -1.0}, "sft_weight"),
        ({"weighting": "unifrom"}, "uniform"),
        ({"weighting": "entropies"}, "did you mean 'entropy'"),
        ({"form": "mutual"}, "mutual_bce"),
        ({"centering": "respones"}, "response"),
        ({"loss": "outcomes"}, "did you mean 'outcome'"),
        ({"text_form": "grm_dpo_no_ref"}, "did you mean 'grm_dpo_noref'"),
        ({"scale_decay": 1.0}, "scale_decay"),
        ({"scale_start": 0.0}, "scale_start"),
        ({"label_smoothing": 0.5}, "label_smoothing must be in"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"positive_weight": -1.0}, "positive_weight"),
        ({"text_form": "grm_sft", "sft_weight": 1.0}, r"sft_weight must be in \[0, 1\) for grm_sft"),
        ({"text_form": "grm_sft", "text_beta": 0.0}, "text_beta"),
        ({"loss": "outcome", "label_smoothing": 0.1}, "label_smoothing.* go with loss='bradley_terry'"),
        ({"loss": "process", "positive_weight": 0.1}, "positive_weight.* go with loss='bradley_terry'"),
        ({"loss": "outcome", "center_rewards_coefficient": 0.1}, "center_rewards_coefficient.* loss='bradley_terry'"),
        ({"pooling": "max"}, "did you mean 'mean'"),
        ({"pooling": "mean", "loss": "process"}, "losses of whole responses, not loss='process'"),
        ({"td_lambda": -0.1}, r"td_lambda must be in \[0, 1\], got -0.1"),
        ({"form": "td_lambda", "weighting": "random_pairs"}, "all tokens that follow"),
        ({"form": "expected"}, "weighting='probability' would count them twice; set weighting='uniform'"),
        ({"siblings": 0}, r"siblings must be in \[1, 8\], got 0"),
        ({"siblings": 9}, r"siblings must be in \[1, 8\], got 9"),
        ({"padding_free": True, "centering": "positions"}, "drop one of them"),
    ],
)
def test_bad_settings_are_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        config(**change)
