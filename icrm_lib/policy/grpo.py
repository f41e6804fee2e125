"""Training a policy on its own samples by GRPO."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from icrm_lib.policy.dpo import train_policy, trainer_arguments
from icrm_lib.profiles import RewardModelSettings
from icrm_lib.tokenization import Conversation


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
    trainer: Callable = GRPOTrainer,
    **config: Any,
) -> GRPOTrainer:
    """Train a policy on its own samples by GRPO (arXiv 2402.03300) with LoRA.

    Args:
        base_model, tokenizer, folder: as in `train_dpo`.
        prompts: conversations that end with a user turn; what fills no batch of a pass is left out of that pass.
        reward: conversations with responses -> one number each, e.g. `RewardModel.score`.
        settings: LoRA and learning rate are read; `epochs` is how often each prompt is sampled, `batch_size` how many
            prompts a step has.
        seed: of LoRA, data order and samples.
        group: samples a prompt; a reward counts by its distance from the mean of its group.
        max_new_tokens: longest response.
        trainer: TRL's, or one like it with what it needs besides, e.g. `partial(CreditTrainer, credit=to_go)`.
        config: arguments of `trl.GRPOConfig` to add or change, e.g. `loss_type`.

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
    own = {
        "per_device_train_batch_size": group * settings.batch_size,
        "steps_per_generation": steps,
        "num_generations": group,
        "max_completion_length": max_new_tokens,
    }
    args = GRPOConfig(**trainer_arguments(settings, folder, seed) | own | config)
    rows = [{"prompt": prompt} for prompt in prompts]
    return train_policy(partial(trainer, reward_funcs=reward_function), args, rows, base_model, tokenizer, settings)
