"""Rewards of the likeliest next tokens: each is a leaf behind its row, and all are scored in one forward pass."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from icrm_lib.decoding.guided import Step
from icrm_lib.decoding.prefixes import KeptPrefixes
from icrm_lib.language_model.attention import dense_mask, why_no_leaves, with_leaves
from icrm_lib.language_model.positions import refuse_too_long, steady_length
from icrm_lib.measures.tokens import TokenScorer
from icrm_lib.reward_model.head import capture_head

# Rows so far and, behind each, K tokens -> the reward of each of these, and the tokens run for it. Shape: (N, K).
ChildScorer = Callable[[Step, torch.Tensor], tuple[torch.Tensor, int]]


class BestChildren:
    """The rewards of the likeliest next tokens; no other token may be written.

    Args:
        score: of the next tokens; `TreeScorer(model)` or `scored_by_rows(...)`.
        k: how many next tokens a row are scored, >= 1.

    Attributes:
        children: next tokens scored so far, without those of ended rows.
        tokens: run by the scorer so far, prompts and prefixes included, without padding and ended rows.

    Raises:
        ValueError: k below 1.
    """

    def __init__(self, score: ChildScorer, k: int):
        if k < 1:
            raise ValueError(f"k is {k}; at least one next token must be scored, so give 1 or more")
        self.score, self.k = score, k
        self.children, self.tokens = 0, 0

    def __call__(self, step: Step) -> torch.Tensor:
        """Return the reward of each of the k likeliest tokens, nan at all others. Shape: (N, V)."""
        children = step.logits.topk(min(self.k, step.logits.shape[1])).indices
        rewards, tokens = self.score(step, children)
        self.children += int(step.running.sum()) * children.shape[1]
        self.tokens += tokens
        vector = torch.full(step.logits.shape, torch.nan, dtype=torch.float32, device=step.logits.device)
        return vector.scatter(1, children, rewards.to(vector))


class TreeScorer:
    """Rewards of next tokens by a reward model, in one forward pass a step.

    The tokens of a row are run once; the next tokens see it and themselves, and are forgotten again.

    Args:
        model: one-label sequence classification model with a reward at every position, in evaluation mode.

    Raises:
        ValueError: an architecture whose attention does not follow any mask, or whose RoPE frequencies depend on the
            length; `scored_by_rows` takes every one.
    """

    def __init__(self, model: PreTrainedModel):
        reason = why_no_leaves(model.config)
        if reason is None and steady_length(model.config) is not None:
            reason = "its RoPE frequencies depend on the length of a row"
        if reason:
            raise ValueError(f"next tokens cannot be leaves of one forward pass: {reason}; use scored_by_rows")
        self.model = model
        self._kept = KeptPrefixes(model)

    @torch.inference_mode()
    def __call__(self, step: Step, children: torch.Tensor) -> tuple[torch.Tensor, int]:
        """See `ChildScorer`."""
        (n, size), k = step.ids.shape, children.shape[1]
        lengths = step.mask.sum(1, keepdim=True)
        refuse_too_long(self.model.config, [int(lengths.max()) + 1])
        fresh, positions, cache = self._kept.continued(step)
        # Padding sees itself, or its attention would be a division by nothing.
        seen = torch.ones(size, size, dtype=torch.bool, device=fresh.device).tril() & step.mask[:, None]
        seen = seen | torch.eye(size, dtype=torch.bool, device=fresh.device)
        seen = with_leaves(seen, torch.full((n, k), size - 1, device=fresh.device))[:, -(fresh.shape[1] + k) :]
        with capture_head(self.model) as head:
            self.model(
                input_ids=torch.cat([fresh, children], 1),
                attention_mask=dense_mask(seen, self.model.config._attn_implementation, self.model.dtype),
                position_ids=torch.cat([positions, lengths.expand(-1, k)], 1),
                past_key_values=cache,
                use_cache=True,
            )
        cache.crop(-k)
        run = int(step.mask[step.running, -fresh.shape[1] :].sum()) + int(step.running.sum()) * k
        return head.rewards[:, -k:], run


def scored_by_rows(scorer: TokenScorer) -> ChildScorer:
    """Score next tokens as rows of their own: the slow way, for any scorer.

    Args:
        scorer: gives the rewards of rows from a position on, e.g. `RewardModel.token_scores`.
    """

    def score(step: Step, children: torch.Tensor) -> tuple[torch.Tensor, int]:
        prefixes = [ids[kept].tolist() for ids, kept in zip(step.ids, step.mask, strict=True)]
        rows = [[*prefix, child] for prefix, own in zip(prefixes, children.tolist(), strict=True) for child in own]
        rewards = [float(values[-1]) for values in scorer(rows, [len(row) - 1 for row in rows])]
        run = sum(len(prefixes[i]) + 1 for i in torch.nonzero(step.running).flatten().tolist()) * children.shape[1]
        return torch.tensor(rewards, device=children.device).view(children.shape), run

    return score
