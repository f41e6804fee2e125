"""GRPO with credit for each token: TRL's trainer, whose advantages a function replaces."""

from typing import Any

import torch
from trl import GRPOTrainer
from trl.models.utils import disable_gradient_checkpointing

from icrm_lib.measures.tokens import TokenScorer
from icrm_lib.policy.credit import Credit, Drawn, outcome
from icrm_lib.tokenization import Conversation


class CreditTrainer(GRPOTrainer):
    """TRL's GRPO with an advantage for each token; losses, clipping and everything else of TRL's keep working.

    Args:
        credit: what makes the advantages.
        token_scorer: makes `Drawn.token_rewards` from rows (prompt and completion) and their first response tokens.
        statistics: also give the policy's log-probabilities and entropies: one more forward pass a generation.
        args, kwargs: of `trl.GRPOTrainer`.

    Raises:
        ValueError: in training, where a process does not hold whole groups, or the credit has another shape than
            (B, T) or is not finite.
    """

    def __init__(
        self,
        *args: Any,
        credit: Credit = outcome,
        token_scorer: TokenScorer | None = None,
        statistics: bool = False,
        **kwargs: Any,
    ):
        self.credit, self.token_scorer, self.statistics = credit, token_scorer, statistics
        super().__init__(*args, **kwargs)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        by_function = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(prompts)
        own = by_function[first : first + len(prompts)]
        self._own_rewards = (own * self.reward_weights.to(own.device)).nansum(1)
        return by_function

    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        drawn = self._drawn([row["prompt"] for row in inputs], output)
        advantages = self.credit(drawn)
        if advantages.shape != drawn.mask.shape or not advantages[drawn.mask].isfinite().all():
            raise ValueError(
                f"credit gave advantages of shape {tuple(advantages.shape)}; they must be finite and of shape "
                f"{tuple(drawn.mask.shape)}, one a token of the padded completions"
            )
        output["advantages"] = advantages.to(drawn.rewards).masked_fill(~drawn.mask, 0.0)
        return output

    def _drawn(self, prompts: list[Conversation], output: dict[str, Any]) -> Drawn:
        size = self.num_generations if self.model.training else self.num_generations_eval
        if len(prompts) % size:
            raise ValueError(
                f"a process holds {len(prompts)} completions and groups have {size}, so a group is split; make "
                "per_device_train_batch_size times steps_per_generation a multiple of num_generations"
            )
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        rows = zip(output["prompt_ids"], output["prompt_mask"], strict=True)
        drawn = Drawn(
            prompts=prompts,
            prompt_ids=[ids[kept.bool()].tolist() for ids, kept in rows],
            completion_ids=output["completion_ids"],
            mask=mask.bool(),
            groups=torch.arange(len(prompts), device=mask.device) // size,
            rewards=self._own_rewards,
            advantages=output["advantages"],
        )
        if self.token_scorer is not None:
            written = output["completion_mask"].bool()
            drawn = drawn._replace(token_rewards=_scored(self.token_scorer, drawn, written))
        return drawn._replace(**self._statistics(drawn, output)) if self.statistics else drawn

    @torch.no_grad()
    def _statistics(self, drawn: Drawn, output: dict[str, Any]) -> dict[str, torch.Tensor]:
        ids, attended = (
            torch.cat([output[f"prompt_{part}"], output[f"completion_{part}"]], 1) for part in ("ids", "mask")
        )
        size = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logprobs, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model, ids, attended, drawn.mask.shape[1], size, compute_entropy=True
            )
        return {"logprobs": logprobs * drawn.mask, "entropies": entropies * drawn.mask}


def _scored(scorer: TokenScorer, drawn: Drawn, written: torch.Tensor) -> torch.Tensor:
    """Rewards of the tokens of completions, padded with 0. Shape: (B, T)."""
    rewards = torch.zeros(drawn.mask.shape, dtype=drawn.rewards.dtype, device=drawn.rewards.device)
    members = torch.nonzero(written.any(1)).flatten().tolist()
    starts = [len(drawn.prompt_ids[i]) for i in members]
    rows = [[*drawn.prompt_ids[i], *drawn.completion_ids[i, written[i]].tolist()] for i in members]
    for i, values in zip(members, scorer(rows, starts), strict=True):
        rewards[i, written[i]] = torch.as_tensor(values).to(rewards)
    return rewards * drawn.mask
