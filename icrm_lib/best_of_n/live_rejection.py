"""Early rejection while sampling: candidates are scored as they grow, and those that fall behind are not finished."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib.best_of_n.early_rejection import Rejection, Schedule, best_so_far
from icrm_lib.language_model.sampling import (
    Response,
    SamplingSettings,
    generate,
    generation_config,
    prompt_ids,
    prompt_seed,
    until_closing,
)
from icrm_lib.reward_model import RewardModel
from icrm_lib.tokenization import Conversation, closing_token_ids


@torch.inference_mode()
def sample_with_early_rejection(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward_model: RewardModel,
    prompt: Conversation,
    settings: SamplingSettings,
    schedule: Schedule,
) -> tuple[Response, Rejection]:
    """Draw `settings.n` responses side by side, and go on only with those whose reward so far is high.

    The policy keeps its KV cache from cut to cut; the reward model reads the survivors' text at each cut, so it may
    have another tokenizer.

    Args:
        policy: causal language model.
        tokenizer: of the policy, prepared.
        reward_model: rewards prefixes; train it so that these mean something.
        prompt: conversation that ends with a user turn.
        settings: how to draw; its seed and the prompt decide the candidates.
        schedule: in tokens of the policy.

    Returns:
        of the candidates that went to their end or to `max_new_tokens` the one with the highest reward, and what was
        used.

    Raises:
        ValueError: a reward that is not finite.
    """
    torch.manual_seed(prompt_seed(settings.seed, prompt))
    start = torch.tensor(prompt_ids(tokenizer, prompt), device=policy.device)
    sequences = [[] for _ in range(settings.n)]
    alive, rewards = np.arange(settings.n), np.empty(0)
    cache, stops = None, closing_token_ids(tokenizer)
    cuts = [cut for cut in schedule.cuts if cut[0] < settings.max_new_tokens]
    for tokens, keep in [*cuts, (settings.max_new_tokens, settings.n)]:
        running = [i for i in alive if not _ended(sequences[i], stops)]
        if running:
            cache = _continue(policy, tokenizer, start, sequences, running, tokens, settings, cache)
        rewards = _rewards_so_far(reward_model, tokenizer, prompt, [sequences[i] for i in alive], stops)
        if not np.isfinite(rewards).all():
            raise ValueError(f"the reward model gave {rewards[~np.isfinite(rewards)][0]}; try it in float32")
        kept = best_so_far(alive, rewards, keep)
        rewards = rewards[np.isin(alive, kept)]
        # The cache has a row for each that ran; it goes on with those that are kept and still unfinished.
        rows = [row for row, i in enumerate(running) if i in kept and not _ended(sequences[i], stops)]
        if running and rows:
            cache.batch_select_indices(torch.tensor(rows, device=policy.device))
        alive = kept
    pick = int(alive[rewards.argmax()])
    ids = sequences[pick]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    used = sum(map(len, sequences))
    return Response(text, len(ids), _ended(ids, stops)), Rejection(pick, used, float("nan"))


def _ended(ids: list[int], stops: Sequence[int]) -> bool:
    return bool(ids) and ids[-1] in stops


def _continue(policy, tokenizer, start, sequences, running, tokens, settings, cache) -> DynamicCache:
    """Extend the running sequences, which are all of one length, to so many tokens or their end."""
    own = torch.tensor([sequences[i] for i in running], dtype=torch.long, device=policy.device)
    ids = torch.cat([start.expand(len(running), -1), own], dim=1)
    cache = cache if cache is not None else DynamicCache(config=policy.config)
    config = generation_config(tokenizer, tokens - own.shape[1], settings)
    output = generate(policy, config, ids, torch.ones_like(ids), past_key_values=cache)
    stops = closing_token_ids(tokenizer)
    for i, row in zip(running, output.sequences[:, len(start) :].tolist(), strict=True):
        sequences[i] = until_closing(row, stops)
    return output.past_key_values


def _rewards_so_far(reward_model, tokenizer, prompt, sequences, stops) -> np.ndarray:
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in sequences]
    finished = [_ended(ids, stops) for ids in sequences]
    return reward_model.score_prefixes(prompt, texts, finished)
