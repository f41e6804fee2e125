"""DPO: preference pairs from a policy's samples, the training, and the reward that the trained policy implies."""

import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import regex
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer

from icrm_lib import runtime
from icrm_lib.generator import model_scorer
from icrm_lib.language_model.causal import load_causal_lm, lora_config
from icrm_lib.language_model.checkpoints import LogFile
from icrm_lib.policy.token_weights import WEIGHTS
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.tokenization import Conversation


def _normalised(prompt: Conversation) -> str:
    """A prompt's text without what makes no other prompt of it: case, white space, punctuation, Unicode form."""
    text = " ".join(message["content"] for message in prompt)
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
    banned = {_normalised(prompt) for prompt in held_out}
    rows, left_out = [], {"held_out": 0, "tied": 0, "identical": 0, "unfinished": 0}
    samples = samples.assign(score=scores)
    if "finished" in samples:
        left_out["unfinished"] = int((~samples["finished"]).sum())
        samples = samples[samples["finished"]]
    for index, group in samples.groupby("prompt", sort=False):
        best, worst = group.loc[group["score"].idxmax()], group.loc[group["score"].idxmin()]
        if _normalised(prompts[index]) in banned:
            left_out["held_out"] += 1
        elif best["score"] == worst["score"]:
            left_out["tied"] += 1
        elif best["response"].strip() == worst["response"].strip():
            left_out["identical"] += 1
        else:
            rows.append({"prompt": prompts[index], "chosen": best["response"], "rejected": worst["response"]})
    return Dataset.from_list(rows), left_out


def train_dpo(
    base_model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    settings: RewardModelSettings,
    *,
    folder: Path,
    seed: int,
    beta: float = 0.1,
    trainer: Callable = DPOTrainer,
    **config: Any,
) -> DPOTrainer:
    """Train a policy by DPO (arXiv 2305.18290) with LoRA; the reference is the base model, the adapter switched off.

    Args:
        base_model: local directory or hub id of a causal language model.
        tokenizer: its tokenizer, prepared.
        pairs: `preferences.load_preferences` output: `prompt` (conversation), `chosen`, `rejected` (text); for a
            `TokenDPOTrainer` also `chosen_weights`, `rejected_weights`.
        settings: LoRA, learning rate, epochs and batch size are read.
        folder: for `log.jsonl`.
        seed: of LoRA and data order.
        beta: strength of the pull towards the reference, > 0.
        trainer: TRL's, or one like it with what it needs besides, e.g. `partial(TokenDPOTrainer, pair_loss=...)`.
        config: arguments of `trl.DPOConfig` to add or change, e.g. `loss_type`.

    Returns:
        the finished trainer; `trainer.model` is the PEFT-wrapped policy.

    Raises:
        ValueError: no pair.
    """
    if not len(pairs):
        raise ValueError("no pairs to train on; a reward that is the same for all responses gives none")
    sides = ("chosen", "rejected")
    given = pairs.select_columns(["prompt", *sides, *(name for name in WEIGHTS if name in pairs.column_names)])
    rows = [row | {side: [{"role": "assistant", "content": row[side]}] for side in sides} for row in given]
    own = {
        "beta": beta,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulation,
        "max_length": None,
    }
    args = DPOConfig(**trainer_arguments(settings, folder, seed) | own | config)
    return train_policy(trainer, args, rows, base_model, tokenizer, settings)


def trainer_arguments(settings: RewardModelSettings, folder: Path, seed: int) -> dict[str, Any]:
    """Return the arguments of TRL's trainers that do not depend on the objective; the folder is made."""
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


def train_policy(
    trainer: Callable,
    args: TrainingArguments,
    rows: list[dict],
    base_model: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
) -> Trainer:
    """Train the base model with LoRA by one of TRL's trainers; return this."""
    training = trainer(
        load_causal_lm(base_model, dtype=torch.bfloat16 if args.bf16 else torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(settings),
        callbacks=[LogFile(Path(args.output_dir) / "log.jsonl")],
    )
    training.remove_callback(PrinterCallback)
    training.train()
    return training


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
