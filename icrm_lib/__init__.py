"""Reproducibility kit for Intra-Trajectory Consistency for Reward Modeling (ICRM, arXiv 2506.09096).

The package itself imports nothing heavy: a name listed below is loaded from its module on first use, so
`import icrm_lib` stays instant and the command-line tools answer before torch is loaded.
"""

import os
import sys
from importlib import import_module

# TRL reports every trainer that is built (architecture, device, number of processes) unless this is set before
# huggingface_hub is loaded; where it is loaded already, the value that it has read is set. Yours stays: 0 allows it.
if "HF_HUB_DISABLE_TELEMETRY" not in os.environ:
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "huggingface_hub.constants" in sys.modules:
        sys.modules["huggingface_hub.constants"].HF_HUB_DISABLE_TELEMETRY = True

__version__ = "0.1.0"

_EXPORTS = {
    "Language": "testbed",
    "load_preferences": "preferences",
    "RewardModel": "reward_model",
    "ICRMConfig": "training",
    "ICRMTrainer": "training",
    "Workspace": "lab.workspace",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"icrm_lib has no attribute {name!r}; it offers {', '.join(_EXPORTS)}")
    return getattr(import_module(f"icrm_lib.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted(__all__)
