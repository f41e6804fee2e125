"""Rewards of tokens, and of the words that the tokens make up."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import regex


class TokenReward(NamedTuple):
    """The reward of the prefix that ends with one response token.

    Attributes:
        text: the token's part of the response; "" for the closing token.
        start: offset of its first character in the response.
        end: offset behind its last character.
        reward: raw reward (a logit).
    """

    text: str
    start: int
    end: int
    reward: float


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
