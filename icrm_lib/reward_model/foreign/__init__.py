"""Reward models as others save them, a file a layout: each is read from safetensors into a model of ours."""

from icrm_lib.reward_model.foreign.value_head import load_value_head

__all__ = ["load_value_head"]
