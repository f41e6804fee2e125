"""Rewards while a response is being written, each token computed once."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib.reward_model import scoring
from icrm_lib.reward_model.words import TokenReward
from icrm_lib.tokenization import Conversation, tokenize_conversation


class PrefixScorer:
    """The reward of a growing sequence, each token computed once.

    Args:
        model: one-label sequence classification model, in evaluation mode.

    Attributes:
        ids: tokens so far.
        rewards: reward after each of them, float32.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.ids: list[int] = []
        self.rewards = np.empty(0, dtype=np.float32)
        self._cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def update(self, ids: Sequence[int]) -> np.ndarray:
        """Move on to another sequence; what it has in common with the present one is not computed again.

        Args:
            ids: the whole sequence, usually the present one and a few more tokens. (A tokenizer may cut the last word
                anew when more of it is known, so the new sequence need not continue the old one.)

        Returns:
            the reward after each token. Shape: (len(ids),).

        Raises:
            ValueError: no token.
        """
        ids = list(ids)
        if not ids:
            raise ValueError("ids [] is empty: give at least one token")
        common = 0
        while common < min(len(ids), len(self.ids)) and ids[common] == self.ids[common]:
            common += 1
        if common < len(self.ids):
            self._cut(common)
        if common < len(ids):
            fresh = scoring.forward(self.model, [ids[common:]], 0, cache=self._cache, seen=common)[0]
            self.rewards = np.concatenate([self.rewards[:common], fresh])
        self.ids = ids
        return self.rewards

    def _cut(self, length: int) -> None:
        try:
            self._cache.crop(length - len(self.ids))  # minus the number of tokens to forget
        except RuntimeError:  # a sliding window has dropped what lies before it
            self._cache = DynamicCache(config=self.model.config)
            if length:
                scoring.forward(self.model, [self.ids[:length]], 0, cache=self._cache)
        self.rewards = self.rewards[:length]


def closing_tokens(offsets: Sequence[tuple[int, int]], text: str) -> int:
    """Number of tokens behind the response's last character: what the template adds to end the turn."""
    return sum(start == end == len(text) for start, end in offsets)


class RewardStream:
    """The reward of a response while it is being written, every token computed once (KV cache).

    Made by `RewardModel.stream`. Give `update` the whole text so far, as often as you like:

        stream = model.stream([{"role": "user", "content": "..."}])
        for text in ("Use", "Use kind", "Use kind words"):
            rewards = stream.update(text)

    The last word of an unfinished text may be cut into other tokens when more of it is known; the tokens that changed
    are computed again, the others are not.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Conversation):
        self._tokenizer, self._prompt = tokenizer, list(prompt)
        self._scorer = PrefixScorer(model)

    def update(self, text: str, *, finished: bool = False) -> list[TokenReward]:
        """Return the reward after each token of the text so far.

        Args:
            text: the response so far, not empty.
            finished: the response ends here: add the closing token, whose reward is the score of the response.
        """
        conversation = [*self._prompt, {"role": "assistant", "content": text}]
        row = tokenize_conversation(self._tokenizer, conversation, offsets=True)
        open_end = 0 if finished else closing_tokens(row.offsets, text)
        ids = row.input_ids[: len(row.input_ids) - open_end]
        rewards = self._scorer.update(ids)[row.prompt_length :].tolist()
        return [
            TokenReward(text[start:end], start, end, reward)
            for (start, end), reward in zip(row.offsets[: len(rewards)], rewards, strict=True)
        ]
