"""Rewards of tokens, of the words that they make up, and of a response while it is being written."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import regex
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from icrm_lib.reward_model.pooling import is_mean, running_means
from icrm_lib.reward_model.scoring import PrefixScorer, last_token
from icrm_lib.tokenization import Conversation, Tokenized, checked_conversation, tokenize_conversation


class TokenReward(NamedTuple):
    """The reward of the prefix that ends with one response token.

    Attributes:
        text: the token's part of the response; "" for the closing token and what else the template writes behind.
        start: offset of its first character in the response.
        end: offset behind its last character.
        reward: raw reward (a logit).
    """

    text: str
    start: int
    end: int
    reward: float


def at_offsets(response: str, offsets: Sequence[tuple[int, int]], rewards: Sequence[float]) -> list[TokenReward]:
    """Put the rewards of a response's tokens beside what each token stands for."""
    return [TokenReward(response[s:e], s, e, reward) for (s, e), reward in zip(offsets, rewards, strict=True)]


def merge_words(rewards: Sequence[TokenReward], response: str) -> list[TokenReward]:
    """Merge the tokens of each word; a word's reward is that of the prefix that ends with its last token.

    Word boundaries are Unicode's (UAX 29): a letter keeps its combining marks, an emoji its joiners, "don't" is one
    word. White space belongs to the word behind it, as most tokenizers have it.

    Args:
        rewards: of `RewardModel.token_rewards`.
        response: the text that the offsets count in.

    Returns:
        one entry a word, punctuation mark or symbol, in order, then the closing token if there is one. Their texts put
        together are the response, or its beginning where tokens end early.
    """
    words: list[TokenReward] = []
    for edge in itertools.accumulate(map(len, _words(response))):
        start = words[-1].end if words else 0
        # The last token that has begun inside the word; one that also holds the next word's beginning counts here.
        inside = [token for token in rewards if token.text and start <= token.start < edge]
        if inside:
            end = max(edge, *(token.end for token in inside))
            words.append(TokenReward(response[start:end], start, end, inside[-1].reward))
    return words + [token for token in rewards if not token.text]


def _words(text: str) -> list[str]:
    words: list[str] = []
    space = ""
    for piece in regex.split(r"\b", text, flags=regex.WORD | regex.V1):
        if piece.isspace():
            space += piece
        elif piece:
            words.append(space + piece)
            space = ""
    return [*words, space] if space else words


def tokenize_so_far(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Conversation,
    text: str,
    *,
    finished: bool,
    max_length: int | None = None,
) -> Tokenized:
    """Tokenize a response that is still being written; without what the template adds at its end unless `finished`.

    With `max_length` the prompt loses what it would lose if the response ended here.
    """
    talk = [*prompt, {"role": "assistant", "content": text}]
    row = tokenize_conversation(tokenizer, talk, max_length=max_length, offsets=True)
    added = 0 if finished else sum(start == end == len(text) for start, end in row.offsets)
    return row._replace(
        input_ids=row.input_ids[: len(row.input_ids) - added], offsets=row.offsets[: len(row.offsets) - added]
    )


class RewardStream:
    """The reward of a response while it is being written, every token computed once (KV cache).

    Made by `RewardModel.stream`. Give `update` the whole text so far, as often as you like:

        stream = model.stream([{"role": "user", "content": "..."}])
        for text in ("Use", "Use kind", "Use kind words"):
            rewards = stream.update(text)

    The last word of an unfinished text may be cut into other tokens when more of it is known; the tokens that changed
    are computed again, the others are not. No prompt is cut: where the conversation is longer than what the model was
    trained with, `RewardModel.score` reads another score.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Conversation):
        self._tokenizer = tokenizer
        self._prompt = checked_conversation(prompt, tokenizer.get_chat_template(), "the prompt", reply=False)
        self._pad_token_id = model.config.get_text_config().pad_token_id
        self._scorer, self._averages = PrefixScorer(model), is_mean(model)

    def update(self, text: str, *, finished: bool = False) -> list[TokenReward]:
        """Return the reward after each token of the text so far.

        Args:
            text: the response so far, not empty.
            finished: the response ends here: add what the template writes behind it; the last reward is the score.

        Raises:
            language_model.positions.SequenceTooLong: prompt and response are longer than the model's positions.
        """
        row = tokenize_so_far(self._tokenizer, self._prompt, text, finished=finished)
        end = last_token(row.input_ids, self._pad_token_id) + 1 if finished else len(row.input_ids)
        rewards = self._scorer.update(row.input_ids[:end])[row.prompt_length :]
        if self._averages:
            rewards = running_means(rewards)
        return at_offsets(text, row.offsets[: len(rewards)], rewards.tolist())
