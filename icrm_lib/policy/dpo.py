"""Training a policy on preferences with TRL, and the reward that such a policy implies at every token."""

import tempfile
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import regex
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from icrm_lib import runtime
from icrm_lib.generator.cache import model_fingerprint, model_scorer
from icrm_lib.lab.workspace import Workspace
from icrm_lib.language_model.causal import load_causal_lm
from icrm_lib.language_model.checkpoints import LogFile
from icrm_lib.language_model.sampling import SamplingSettings, greedy, sample
from icrm_lib.measures.tokens import TokenScorer
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.records import fingerprint
from icrm_lib.tokenization import Conversation, tokenize_conversations


def train_dpo(
    base_model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    settings: RewardModelSettings,
    *,
    folder: Path,
    seed: int,
    beta: float = 0.1,
) -> DPOTrainer:
    """Train a policy by DPO (arXiv 2305.18290) with LoRA; the reference is the base model, the adapter switched off.

    Args:
        base_model: local directory or hub id of a causal language model.
        tokenizer: its tokenizer, prepared.
        pairs: `preferences.load_preferences` output: `prompt` (conversation), `chosen`, `rejected` (text).
        settings: LoRA, learning rate, epochs and batch size are read.
        folder: for `log.jsonl`.
        seed: of LoRA and data order.
        beta: strength of the pull towards the reference, > 0.

    Returns:
        the finished trainer; `trainer.model` is the PEFT-wrapped policy.

    Raises:
        ValueError: no pair.
    """
    if not len(pairs):
        raise ValueError("no pairs to train on; a reward that is the same for all responses gives none")
    args = DPOConfig(
        **_arguments(settings, folder, seed),
        beta=beta,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        max_length=None,
    )
    trainer = DPOTrainer(
        _policy(base_model),
        args=args,
        train_dataset=_conversations(pairs),
        processing_class=tokenizer,
        peft_config=_lora(settings),
        callbacks=[LogFile(folder / "log.jsonl")],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def train_grpo(
    base_model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Conversation],
    reward: Callable[[list[Conversation]], Sequence[float]],
    settings: RewardModelSettings,
    *,
    folder: Path,
    seed: int,
    group: int = 8,
    max_new_tokens: int = 128,
) -> GRPOTrainer:
    """Train a policy on its own samples by GRPO (arXiv 2402.03300) with LoRA.

    Args:
        base_model: local directory or hub id of a causal language model.
        tokenizer: its tokenizer, prepared.
        prompts: conversations that end with a user turn; what fills no batch of a pass is left out of that pass.
        reward: conversations with responses -> one number each, e.g. `RewardModel.score`.
        settings: LoRA and learning rate are read; `epochs` is how often each prompt is sampled, `batch_size` how many
            prompts a step has.
        folder: for `log.jsonl`.
        seed: of LoRA, data order and samples.
        group: samples a prompt; a reward counts by its distance from the mean of its group.
        max_new_tokens: longest response.

    Returns:
        the finished trainer; `trainer.model` is the PEFT-wrapped policy, `trainer.state.num_input_tokens_seen` what it
        read and wrote.

    Raises:
        ValueError: fewer prompts than `batch_size`.
    """

    def reward_function(prompts: list[Conversation], completions: list[Conversation], **_) -> list[float]:
        talks = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        return [float(value) for value in reward(talks)]

    if len(prompts) < settings.batch_size:
        raise ValueError(f"{len(prompts)} prompts are fewer than batch_size {settings.batch_size}; lower it")
    # Sampling pays by the token step, hardly by the row: up to four steps live on the samples of one policy.
    steps = min(4, len(prompts) // settings.batch_size)
    args = GRPOConfig(
        **_arguments(settings, folder, seed),
        per_device_train_batch_size=group * settings.batch_size,
        steps_per_generation=steps,
        num_generations=group,
        max_completion_length=max_new_tokens,
    )
    trainer = GRPOTrainer(
        _policy(base_model),
        reward_funcs=reward_function,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=tokenizer,
        peft_config=_lora(settings),
        callbacks=[LogFile(folder / "log.jsonl")],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def _arguments(settings: RewardModelSettings, folder: Path, seed: int) -> dict[str, Any]:
    """What both trainers are told in the same way."""
    folder.mkdir(parents=True, exist_ok=True)
    on_gpu = runtime.device() == "cuda"
    return {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "save_strategy": "no",
        "logging_steps": 5,
        "report_to": "none",
        "disable_tqdm": not runtime.watched(),
        "seed": seed,
    }


def _policy(base_model: str | Path) -> PreTrainedModel:
    return load_causal_lm(base_model, dtype=torch.bfloat16 if runtime.device() == "cuda" else torch.float32)


def _lora(settings: RewardModelSettings) -> LoraConfig:
    return LoraConfig(
        task_type="CAUSAL_LM", r=settings.lora_rank, lora_alpha=settings.lora_alpha, target_modules="all-linear"
    )


def _conversations(pairs: Dataset) -> Dataset:
    def turn(row: dict) -> dict:
        return {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}

    rows = [{"prompt": row["prompt"], **turn(row)} for row in pairs.select_columns(["prompt", "chosen", "rejected"])]
    return Dataset.from_list(rows)


def normalised(text: str) -> str:
    """Return a text without what does not make two prompts different: case, white space, punctuation, Unicode form."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(regex.sub(r"[^\w\s]+", " ", folded).split())


def pairs_from_samples(
    samples: pd.DataFrame,
    scores: Sequence[float],
    prompts: Sequence[Conversation],
    *,
    held_out: Sequence[Conversation] = (),
) -> tuple[Dataset, dict[str, int]]:
    """Make preference pairs from sampled responses: the highest-scoring one of a prompt against the lowest.

    Args:
        samples: of `sampling.sample`: one row a response, `prompt` (index) and `response`.
        scores: of a reward model or a judge, one a row of `samples`.
        prompts: conversations that the samples answer.
        held_out: prompts of the test set; a prompt whose normalised text occurs among them gives no pair.

    A response that was cut before its end (`finished` False, where `samples` say so) is not used: training would teach
    a closing token that nobody wrote.

    Returns:
        rows `prompt` (conversation), `chosen`, `rejected` (text), and what was left out: `held_out`, `tied` (all scores
        equal, as with a constant reward), `identical` (best and worst have one text) and `unfinished` responses.

    Raises:
        ValueError: another number of scores than of samples, or one that is not finite.
    """
    scores = np.asarray(scores, dtype=float)
    if len(scores) != len(samples) or not np.isfinite(scores).all():
        raise ValueError(
            f"need {len(samples)} finite scores, one a sample: got {len(scores)}, {np.isfinite(scores).sum()} finite"
        )
    banned = {_text(prompt) for prompt in held_out}
    rows, left_out = [], {"held_out": 0, "tied": 0, "identical": 0, "unfinished": 0}
    samples = samples.assign(score=scores)
    if "finished" in samples:
        left_out["unfinished"] = int((~samples["finished"]).sum())
        samples = samples[samples["finished"]]
    for index, group in samples.groupby("prompt", sort=False):
        best, worst = group.loc[group["score"].idxmax()], group.loc[group["score"].idxmin()]
        if _text(prompts[index]) in banned:
            left_out["held_out"] += 1
        elif best["score"] == worst["score"]:
            left_out["tied"] += 1
        elif best["response"].strip() == worst["response"].strip():
            left_out["identical"] += 1
        else:
            rows.append({"prompt": prompts[index], "chosen": best["response"], "rejected": worst["response"]})
    return Dataset.from_list(rows), left_out


def _text(prompt: Conversation) -> str:
    return normalised(" ".join(message["content"] for message in prompt))


def implicit_rewards(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    rows: Sequence[list[int]],
    starts: Sequence[int],
    *,
    beta: float,
    pad_token_id: int,
) -> list[np.ndarray]:
    """Reward of every prefix that a DPO policy implies: beta times the log-ratio of policy and reference, summed.

    The log-ratio of one token is its advantage (arXiv 2404.12358), so the sum up to a token stands for the prefix.

    Args:
        policy: trained by `train_dpo`.
        reference: what it started from.
        rows: token ids.
        starts: index of the first response token in each row.
        beta: as in training.
        pad_token_id: padding id.

    Returns:
        per row float32, shape (len(row) - start,): the reward after each response token.
    """
    asked = list(zip(rows, starts, strict=True))
    sides = [model_scorer(model.eval(), pad_token_id)(asked) for model in (policy, reference)]
    return [np.cumsum(beta * (ours - theirs), dtype=np.float32) for ours, theirs in zip(*sides, strict=True)]


# On the testbed ------------------------------------------------------------------------------------------------------

GROUP, GROUPS = 8, 2  # samples of a group, and groups a training prompt: each group gives DPO a pair and GRPO a mean
# What tuning chose for DPO in the evidence (`implicit`), on validation labels; the same for every reward model.
BETA, DPO_RATE, DPO_EPOCHS = 0.5, 1e-3, 5.0
GRPO_RATE, GRPO_PROMPTS = 1e-3, 4  # ours; prompts a step
KINDS = ("dpo", "grpo_outcome", "grpo_tokens")


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
    tokenizer, longest = workspace.tokenizer, workspace.profile.downstream.max_new_tokens
    train, test = workspace.prompts("train"), workspace.prompts("test")
    policy = load_causal_lm(workspace.base_model).eval()
    samples = training_samples(workspace)
    scored = score_talks(tokenizer, rewards, _talks(train, samples))
    level = float(np.mean(np.concatenate(scored)))

    def outcome(talks: list[Conversation]) -> list[float]:
        return [float(values[-1]) for values in score_talks(tokenizer, rewards, talks)]

    def tokens(talks: list[Conversation]) -> list[float]:
        return [float((values - level).sum()) for values in score_talks(tokenizer, rewards, talks)]

    judge = partial(_judged, workspace, policy, test)
    results = {"reference": judge(policy)}
    lora = workspace.profile.reward_model
    for kind in kinds:
        begin = time.perf_counter()
        if kind == "dpo":
            groups = samples.assign(prompt=samples["prompt"] * GROUPS + samples["index"] // GROUP)
            asked = [prompt for prompt in train for _ in range(GROUPS)]
            pairs, left_out = pairs_from_samples(groups, [v[-1] for v in scored], asked, held_out=test)
            about = {"pairs": len(pairs), "pairs_right": _pairs_right(workspace, pairs), "left_out": left_out}
            options = replace(lora, learning_rate=DPO_RATE, epochs=DPO_EPOCHS)
            trainer = train_dpo(
                workspace.base_model, tokenizer, pairs, options, folder=folder / kind, seed=seed, beta=BETA
            )
        else:
            about, reward = {}, {"grpo_outcome": outcome, "grpo_tokens": tokens}[kind]
            options = replace(lora, learning_rate=GRPO_RATE, epochs=float(GROUPS), batch_size=GRPO_PROMPTS)
            trainer = train_grpo(
                workspace.base_model,
                tokenizer,
                train,
                reward,
                options,
                folder=folder / kind,
                seed=seed,
                group=GROUP,
                max_new_tokens=longest,
            )
        about["seconds"] = round(time.perf_counter() - begin, 2)
        results[kind] = about | judge(trainer.model.merge_and_unload().eval())
    return results


def score_talks(
    tokenizer: PreTrainedTokenizerBase, rewards: TokenScorer, talks: Sequence[Conversation]
) -> list[np.ndarray]:
    """Token rewards of conversations; of each the last one is its score."""
    rows = tokenize_conversations(tokenizer, talks)
    return rewards([row.input_ids for row in rows], [row.prompt_length for row in rows])


def training_samples(workspace: Workspace) -> pd.DataFrame:
    """Return the base model's samples of the training prompts; drawn once and kept in `runs/`."""
    longest = workspace.profile.downstream.max_new_tokens
    settings = SamplingSettings(n=GROUP * GROUPS, max_new_tokens=longest, seed=1)
    key = {"policy": model_fingerprint(workspace.base_model), "settings": asdict(settings)}
    path = workspace.folder / f"samples-{fingerprint(key)}.jsonl"
    policy = load_causal_lm(workspace.base_model).eval()
    return sample(policy, workspace.tokenizer, workspace.prompts("train"), settings, path)


def _talks(prompts: Sequence[Conversation], samples: pd.DataFrame) -> list[Conversation]:
    return [[*prompts[row.prompt], {"role": "assistant", "content": row.response}] for row in samples.itertuples()]


def _pairs_right(workspace: Workspace, pairs: Dataset) -> float:
    sides = [
        workspace.judge([[*row["prompt"], {"role": "assistant", "content": row[side]}] for row in pairs])
        for side in ("chosen", "rejected")
    ]
    differences = sides[0] - sides[1]
    unequal = [value > 0 for value in differences if value != 0]
    return float(np.mean(unequal)) if unequal else float("nan")


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
    talks = _talks(prompts, samples)
    rows = tokenize_conversations(tokenizer, talks)
    asked = [(row.input_ids, row.prompt_length) for row in rows]
    ours, theirs = (model_scorer(model, tokenizer.pad_token_id)(asked) for model in (policy, reference))
    gold = workspace.judge(talks).reshape(len(prompts), GROUP)
    replies = [
        [*prompt, {"role": "assistant", "content": response.text}]
        for prompt, response in zip(prompts, written, strict=True)
    ]
    return {
        "greedy": workspace.judge(replies).tolist(),
        "sampled": gold.mean(1).tolist(),
        "tokens": samples["tokens"].to_numpy().reshape(len(prompts), GROUP).mean(1).tolist(),
        "kl": float(np.mean([(a - b).sum() for a, b in zip(ours, theirs, strict=True)])),
    }
