"""What policies become that are trained on what a reward model says, judged by the gold score."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib.generator import model_scorer
from icrm_lib.lab.cells import ON_POLICY, Cell
from icrm_lib.lab.data import replied
from icrm_lib.lab.held_out import Readouts
from icrm_lib.lab.inputs import policy_workspace
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.samples import sample
from icrm_lib.language_model.sampling import SamplingSettings, greedy
from icrm_lib.measures.tokens import TokenScorer
from icrm_lib.policy import pairs_from_samples, train_dpo, train_grpo
from icrm_lib.profiles import Profile
from icrm_lib.tokenization import Conversation, tokenize_conversations

GROUP, GROUPS = 8, 2  # samples of a group, and groups a training prompt: each group gives DPO a pair and GRPO a mean
# What tuning chose for DPO in the evidence (`implicit`), on validation labels; the same for every reward model.
BETA, DPO_RATE, DPO_EPOCHS = 0.5, 1e-3, 5.0
GRPO_RATE, GRPO_PROMPTS = 1e-3, 4  # ours; prompts a step
KINDS = ("dpo", "grpo_outcome", "grpo_tokens")


def constants(profile: Profile, cell: Cell) -> dict[str, Any]:
    """See `cell.PURPOSES`."""
    found = {"purpose": "policy", "groups": (GROUP, GROUPS), "dpo": (BETA, DPO_RATE, DPO_EPOCHS)}
    found |= {"grpo": (GRPO_RATE, GRPO_PROMPTS), "longest": profile.downstream.max_new_tokens}
    return found | {"kinds": _kinds(cell)}


def prepare(profile: Profile) -> list[Path]:
    """See `cell.PURPOSES`: the samples of the training prompts are drawn once."""
    workspace = policy_workspace(profile)
    training_samples(workspace)
    return [Path(workspace.base_model), workspace.samples_file(_drawn(workspace))]


def measure(profile: Profile, cell: Cell, readouts: Readouts, folder: Path) -> dict[str, Any]:
    """See `cell.PURPOSES`."""
    workspace, options = policy_workspace(profile), {"seed": cell.seed, "folder": folder, "kinds": _kinds(cell)}
    return measure_policies(workspace, readouts["place"], **options)


def _kinds(cell: Cell) -> tuple[str, ...]:
    return KINDS if cell.method in ON_POLICY else KINDS[:1]


def measure_policies(
    workspace: Workspace, rewards: TokenScorer, *, seed: int, folder: Path, kinds: Sequence[str] = KINDS
) -> dict[str, Any]:
    """Train policies on what a reward model says of the base model's samples, and judge them by the gold score.

    DPO sees the best and the worst of each group of samples; GRPO draws as many samples itself. Both start from the
    base model, on the training prompts; they are judged on the test prompts.

    Args:
        workspace: on the testbed, or with a judge in its profile; its base model is the policy to begin with.
        rewards: scores tokens; the last one of a response is its score.
        seed: of LoRA, data order and GRPO's samples.
        folder: for logs.
        kinds: of `KINDS`: "dpo", "grpo_outcome" (the score of the response), "grpo_tokens" (the rewards of all its
            tokens, summed, each less the mean of the samples' token rewards, so that a constant counts nothing).

    Returns:
        by kind, and for the base model as "reference": see `_judged`, the training's `seconds`, and for "dpo" the
        number of `pairs`, the share of them that the gold score confirms (`pairs_right`, equal ones left out) and
        `left_out`.
    """
    tokenizer, prompts = workspace.tokenizer, workspace.prompts("train")
    samples = training_samples(workspace)
    scored = score_talks(tokenizer, rewards, replied([prompts[i] for i in samples["prompt"]], samples["response"]))
    level = float(np.mean(np.concatenate(scored)))

    def outcome(talks: list[Conversation]) -> list[float]:
        return [float(values[-1]) for values in score_talks(tokenizer, rewards, talks)]

    def tokens(talks: list[Conversation]) -> list[float]:
        return [float((values - level).sum()) for values in score_talks(tokenizer, rewards, talks)]

    ways = {
        "dpo": partial(_by_dpo, workspace, samples.assign(score=[values[-1] for values in scored])),
        "grpo_outcome": partial(_by_grpo, workspace, outcome),
        "grpo_tokens": partial(_by_grpo, workspace, tokens),
    }
    reference = load_causal_lm(workspace.base_model).eval()
    judge = partial(_judged, workspace, reference, workspace.prompts("test"))
    results = {"reference": judge(reference)}
    for kind in kinds:
        begin = time.perf_counter()
        policy, about = ways[kind](folder=folder / kind, seed=seed)
        about["seconds"] = round(time.perf_counter() - begin, 2)
        results[kind] = about | judge(policy.merge_and_unload().eval())
    return results


def _by_dpo(workspace: Workspace, samples: pd.DataFrame, **options: Any) -> tuple[PeftModel, dict[str, Any]]:
    """Train on the best and the worst of each group of scored samples; also say what pairs they made."""
    groups = samples.assign(prompt=samples["prompt"] * GROUPS + samples["index"] // GROUP)
    asked = [prompt for prompt in workspace.prompts("train") for _ in range(GROUPS)]
    pairs, left_out = pairs_from_samples(groups, groups["score"], asked, held_out=workspace.prompts("test"))
    about = {"pairs": len(pairs), "pairs_right": _pairs_right(workspace, pairs), "left_out": left_out}
    settings = replace(workspace.profile.reward_model, learning_rate=DPO_RATE, epochs=DPO_EPOCHS)
    return train_dpo(workspace.base_model, workspace.tokenizer, pairs, settings, beta=BETA, **options).model, about


def _by_grpo(workspace: Workspace, reward: Callable, **options: Any) -> tuple[PeftModel, dict[str, Any]]:
    changes = {"learning_rate": GRPO_RATE, "epochs": float(GROUPS), "batch_size": GRPO_PROMPTS}
    settings = replace(workspace.profile.reward_model, **changes)
    options |= {"group": GROUP, "max_new_tokens": workspace.profile.downstream.max_new_tokens}
    prompts = workspace.prompts("train")
    return train_grpo(workspace.base_model, workspace.tokenizer, prompts, reward, settings, **options).model, {}


def score_talks(
    tokenizer: PreTrainedTokenizerBase, rewards: TokenScorer, talks: Sequence[Conversation]
) -> list[np.ndarray]:
    """Token rewards of conversations; of each the last one is its score."""
    rows = tokenize_conversations(tokenizer, talks)
    return rewards([row.input_ids for row in rows], [row.prompt_length for row in rows])


def training_samples(workspace: Workspace) -> pd.DataFrame:
    """Return the base model's samples of the training prompts; drawn once and kept in `runs/`."""
    return workspace.samples(workspace.prompts("train"), _drawn(workspace))


def _drawn(workspace: Workspace) -> SamplingSettings:
    longest = workspace.profile.downstream.max_new_tokens
    return SamplingSettings(n=GROUP * GROUPS, max_new_tokens=longest, seed=1)


def _pairs_right(workspace: Workspace, pairs: Dataset) -> float:
    chosen, rejected = (workspace.judge(replied(pairs["prompt"], pairs[side])) for side in ("chosen", "rejected"))
    unequal = (chosen > rejected)[chosen != rejected]
    return float(np.mean(unequal)) if len(unequal) else float("nan")


def _judged(
    workspace: Workspace, reference: PreTrainedModel, prompts: Sequence[Conversation], policy: PreTrainedModel
) -> dict[str, Any]:
    """Judge a policy by the gold score.

    By prompt: the gold score of its most probable response (`greedy`), mean gold score and tokens of eight samples
    (`sampled`, `tokens`). And the samples' mean log-ratio to the reference, in nats a response (`kl`).
    """
    tokenizer, longest = workspace.tokenizer, workspace.profile.downstream.max_new_tokens
    written = greedy(policy, tokenizer, prompts, max_new_tokens=longest)
    settings = SamplingSettings(n=GROUP, max_new_tokens=longest, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        samples = sample(policy, tokenizer, prompts, settings, Path(folder) / "samples.jsonl")
    talks = replied([prompts[i] for i in samples["prompt"]], samples["response"])
    rows = tokenize_conversations(tokenizer, talks)
    asked = [(row.input_ids, row.prompt_length) for row in rows]
    ours, theirs = (model_scorer(model, tokenizer.pad_token_id)(asked) for model in (policy, reference))
    gold = workspace.judge(talks).reshape(len(prompts), GROUP)
    return {
        "greedy": workspace.judge(replied(prompts, [response.text for response in written])).tolist(),
        "sampled": gold.mean(1).tolist(),
        "tokens": samples["tokens"].to_numpy().reshape(len(prompts), GROUP).mean(1).tolist(),
        "kl": float(np.mean([(a - b).sum() for a, b in zip(ours, theirs, strict=True)])),
    }
