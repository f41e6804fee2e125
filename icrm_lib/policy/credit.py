"""Credit: what makes an advantage for each token of a group of completions.

Token rewards become advantages in two ways, and a system declares which its rewards are made for: `to_go` sums what
comes from a token on, as rewards are summed to a return; `direct` takes a reward as the advantage of its token.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch

from icrm_lib.tokenization import Conversation

EPSILON = 1e-4  # added to a standard deviation before it divides, as TRL does
Baseline = Literal["group", "position"]


class Drawn(NamedTuple):
    """Completions of a step, which come in groups of one prompt; B rows, T padded completion length.

    Attributes:
        prompts: conversations. Length B.
        prompt_ids: token ids of each prompt. Length B.
        completion_ids: padded. Shape: (B, T).
        mask: True at the tokens of a completion that the policy wrote. Bool. Shape: (B, T).
        groups: number of each row's group, from 0. Shape: (B,).
        rewards: of the whole responses, by TRL's reward functions and their weights. Shape: (B,).
        advantages: TRL's own: a reward by its distance from the mean of its group, scaled. Shape: (B,).
        token_rewards: 0 outside the mask; None without a scorer. Shape: (B, T).
        logprobs, entropies: of the policy at each token, in nats, 0 outside the mask; None unless asked for. (B, T).
    """

    prompts: list[Conversation]
    prompt_ids: list[list[int]]
    completion_ids: torch.Tensor
    mask: torch.Tensor
    groups: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor
    token_rewards: torch.Tensor | None = None
    logprobs: torch.Tensor | None = None
    entropies: torch.Tensor | None = None


Credit = Callable[[Drawn], torch.Tensor]  # -> advantages, shape (B, T); what stands outside the mask plays no part


def outcome(drawn: Drawn) -> torch.Tensor:
    """Give every token the advantage of its response: GRPO as TRL has it. Shape: (B, T)."""
    return drawn.advantages[:, None].expand(drawn.mask.shape)


def to_go(drawn: Drawn, *, baseline: Baseline = "position", scaled: bool = True) -> torch.Tensor:
    """Sum of token rewards from each token on, less a baseline that all of its group share.

    Args:
        drawn: with token rewards r.
        baseline: "group": the mean over the group of the sum of all rewards of a response, so that an outcome at the
            last token gives GRPO's own advantages; "position": at token t the mean over the group of the sums from t
            on, a response that has ended counting 0.
        scaled: divide by the standard deviation over the group of the sums of all rewards.

    Returns:
        A_t = (sum of r_s over s >= t - baseline) / (std + 1e-4). Shape: (B, T).

    Raises:
        ValueError: no token rewards, or an unknown baseline.
    """
    if baseline not in get_args(Baseline):
        raise ValueError(f"baseline is {baseline!r}; give {' or '.join(map(repr, get_args(Baseline)))}")
    sums = _rewards(drawn).flip(1).cumsum(1).flip(1)
    advantages = torch.zeros_like(sums)
    for rows in _groups(drawn):
        whole = sums[rows, 0]
        level = whole.mean() if baseline == "group" else sums[rows].mean(0)
        advantages[rows] = (sums[rows] - level) / (_deviation(whole) if scaled else 1.0)
    return advantages * drawn.mask


def direct(drawn: Drawn, *, centred: bool = True, scaled: bool = True) -> torch.Tensor:
    """Token rewards as advantages.

    Args:
        drawn: with token rewards r.
        centred: subtract the mean over all tokens of the group.
        scaled: divide by the standard deviation over all tokens of the group.

    Returns:
        A_t = (r_t - mean) / (std + 1e-4). Shape: (B, T).

    Raises:
        ValueError: no token rewards.
    """
    rewards = _rewards(drawn)
    advantages = torch.zeros_like(rewards)
    for rows in _groups(drawn):
        tokens = rewards[rows][drawn.mask[rows]]
        level = tokens.mean() if centred else 0.0
        advantages[rows] = (rewards[rows] - level) / (_deviation(tokens) if scaled else 1.0)
    return advantages * drawn.mask


def _rewards(drawn: Drawn) -> torch.Tensor:
    if drawn.token_rewards is None:
        raise ValueError("there are no token rewards; give the trainer a token_scorer, or the credit function its own")
    return drawn.token_rewards * drawn.mask


def _groups(drawn: Drawn) -> list[torch.Tensor]:
    """Which rows each group has; one without a token (TRL masks those that were cut, if told to) is in none."""
    kept = drawn.mask.any(1)
    return [(drawn.groups == group) & kept for group in drawn.groups[kept].unique()]


def _deviation(values: torch.Tensor) -> torch.Tensor:
    """Standard deviation, and what keeps it from 0; a single value has none. Shape: ()."""
    return (values.std() if len(values) > 1 else values.new_zeros(())) + EPSILON
