"""Early rejection: the candidates that fall behind are stopped, in a replay of known ones or while sampling."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

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
from icrm_lib.reward_model.closing import Readout
from icrm_lib.tokenization import Conversation, closing_token_ids


@dataclass(frozen=True)
class Schedule:
    """When candidates are compared, and how many go on.

    Attributes:
        cuts: (tokens, keep) pairs: once every candidate has that many tokens (or has ended), the `keep` with the
            highest reward so far go on. Tokens rise, keeps fall.
    """

    cuts: tuple[tuple[int, int], ...]

    def __post_init__(self):
        tokens, keeps = [t for t, _ in self.cuts], [k for _, k in self.cuts]
        rising = all(a < b for a, b in zip(tokens, tokens[1:], strict=False))
        falling = all(a > b for a, b in zip(keeps, keeps[1:], strict=False))
        if not (rising and falling) or (tokens and (tokens[0] < 1 or keeps[-1] < 1)):
            raise ValueError(
                f"cuts {self.cuts}: tokens must rise from 1, keeps fall to 1 or more; e.g. ((15, 24), (25, 8))"
            )


class Rejection(NamedTuple):
    """What early rejection did with the candidates of one prompt.

    Attributes:
        pick: index of the candidate that is chosen in the end.
        tokens: tokens generated, those of stopped candidates included.
        full_tokens: tokens that all candidates together would have needed; nan where they were not generated.
    """

    pick: int
    tokens: int
    full_tokens: float


def early_rejection(rewards: Sequence[np.ndarray], schedule: Schedule) -> Rejection:
    """Replay a schedule on candidates whose token rewards are known to the end.

    Args:
        rewards: per candidate the reward after each of its tokens, the closing token last. Each of shape (T_i,).
        schedule: when to compare, and how many to keep.

    Returns:
        the pick and the tokens used; with no cuts, best-of-N and all tokens.

    Raises:
        ValueError: no candidate, one without tokens, or a reward that is not finite.
    """
    if not len(rewards) or not all(len(r) and np.isfinite(r).all() for r in rewards):
        raise ValueError("early rejection needs at least one candidate, each with finite rewards after its tokens")
    lengths = np.array([len(r) for r in rewards])
    alive, used = np.arange(len(rewards)), np.zeros(len(rewards), dtype=int)
    for tokens, keep in schedule.cuts:
        used[alive] = np.minimum(lengths[alive], tokens)
        now = np.array([rewards[i][used[i] - 1] for i in alive])
        alive = best_so_far(alive, now, keep)
    used[alive] = lengths[alive]
    final = np.array([rewards[i][-1] for i in alive])
    return Rejection(int(alive[final.argmax()]), int(used.sum()), int(lengths.sum()))


def best_so_far(alive: np.ndarray, rewards: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` with the highest rewards, in their old order; of equal ones the first."""
    return alive[np.sort(np.argsort(-rewards, kind="stable")[:keep])]


def schedules(tokens: Iterable[int], keeps: Iterable[int]) -> list[Schedule]:
    """Return every schedule with one to three cuts at some of the given lengths."""
    tokens, keeps = sorted(set(tokens)), sorted(set(keeps), reverse=True)
    return [
        Schedule(tuple(zip(at, kept, strict=True)))
        for cuts in (1, 2, 3)
        for at in combinations(tokens, cuts)
        for kept in combinations(keeps, cuts)
    ]


class Tried(NamedTuple):
    """A schedule on known candidates: the mean value of its picks, and its share of the tokens of all candidates."""

    schedule: Schedule
    value: float
    share: float


def try_schedules(
    rewards: Sequence[Sequence[np.ndarray]], values: Sequence[np.ndarray], options: Iterable[Schedule]
) -> list[Tried]:
    """Replay schedules on the candidates of several prompts.

    Args:
        rewards: per prompt, per candidate, the reward after each token.
        values: per prompt, what each candidate is worth, e.g. its gold score. Without a judge, the reward of the whole
            response itself.
        options: schedules, e.g. of `schedules`.
    """
    found = []
    for option in options:
        runs = [early_rejection(candidates, option) for candidates in rewards]
        share = sum(run.tokens for run in runs) / sum(run.full_tokens for run in runs)
        value = np.mean([value[run.pick] for value, run in zip(values, runs, strict=True)])
        found.append(Tried(option, float(value), share))
    return found


def choose_schedule(tried: Sequence[Tried], budget: float) -> Tried:
    """Return the most valuable schedule that stays within a budget; of equally valuable ones the cheapest.

    Args:
        tried: of `try_schedules`, on validation prompts.
        budget: largest share of the tokens of all candidates, in (0, 1].

    Raises:
        ValueError: none stays within the budget.
    """
    within = [one for one in tried if one.share <= budget]
    if not within:
        raise ValueError(f"none of {len(tried)} schedules uses at most {budget:.0%} of the tokens; cut earlier or more")
    return max(within, key=lambda one: (one.value, -one.share))


@torch.inference_mode()
def sample_with_early_rejection(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward_model: RewardModel,
    prompt: Conversation,
    settings: SamplingSettings,
    schedule: Schedule,
    *,
    readout: Readout = "place",
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
        readout: how unfinished responses are read; "closing" for a reward model trained on whole responses alone, see
            `RewardModel.token_scores`.

    Returns:
        of the candidates that went to their end or to `max_new_tokens` the one with the highest reward, and what was
        used.

    Raises:
        ValueError: a reward that is not finite.
    """
    torch.manual_seed(prompt_seed(settings.seed, prompt))
    start = torch.tensor(prompt_ids(tokenizer, prompt), device=policy.device)
    sequences: list[list[int]] = [[] for _ in range(settings.n)]
    alive, ended = np.arange(settings.n), np.zeros(settings.n, dtype=bool)
    cache, stops = None, closing_token_ids(tokenizer)
    cuts = [cut for cut in schedule.cuts if cut[0] < settings.max_new_tokens]
    for tokens, keep in [*cuts, (settings.max_new_tokens, settings.n)]:
        running = alive[~ended[alive]]
        if len(running):
            cache = _continue(policy, tokenizer, start, sequences, running, tokens, settings, cache)
            ended[running] = [sequences[i][-1] in stops for i in running]
        texts = [tokenizer.decode(sequences[i], skip_special_tokens=True) for i in alive]
        rewards = reward_model.score_prefixes(prompt, texts, ended[alive].tolist(), readout=readout)
        if not np.isfinite(rewards).all():
            raise ValueError(f"the reward model gave {rewards[~np.isfinite(rewards)][0]}; try it in float32")
        kept = best_so_far(alive, rewards, keep)
        rewards, alive = rewards[np.isin(alive, kept)], kept
        # The cache has a row for each that ran; it goes on with those that are kept and still unfinished.
        rows = np.flatnonzero(np.isin(running, kept) & ~ended[running])
        if len(rows):
            cache.batch_select_indices(torch.tensor(rows, device=policy.device))
    pick = int(alive[rewards.argmax()])
    ids = sequences[pick]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    rejection = Rejection(pick, sum(map(len, sequences)), float("nan"))
    return Response(text, len(ids), bool(ended[pick])), rejection


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
