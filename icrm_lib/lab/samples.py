"""Samples of the policy that the cells' reward models judge, drawn once."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from icrm_lib.generator import model_fingerprint
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.sampling import SamplingSettings, sample
from icrm_lib.records import fingerprint
from icrm_lib.tokenization import Conversation


def policy_samples(workspace: Workspace, prompts: Sequence[Conversation], settings: SamplingSettings) -> pd.DataFrame:
    """Return the base model's responses (see `sample`); they are kept among the workspace's artefacts."""
    key = {"policy": model_fingerprint(workspace.base_model), "settings": asdict(settings)}
    path = workspace.folder / f"samples-{fingerprint(key)}.jsonl"
    policy = load_causal_lm(workspace.base_model).eval()
    return sample(policy, workspace.tokenizer, prompts, settings, path)


def talks_of(prompts: Sequence[Conversation], samples: pd.DataFrame) -> list[Conversation]:
    """Return the conversations that samples make with their prompts, row by row."""
    return [[*prompts[row.prompt], {"role": "assistant", "content": row.response}] for row in samples.itertuples()]
