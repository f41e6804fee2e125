"""Responses of a language as arrays: states of the grammar, probabilities by a generator, and what is known of tokens.

The state after a token is all that the language's future depends on, but for the words themselves: where the response
is between clauses, how many tokens of a phrase, name or link are there, and which qualities it may still have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from icrm_lib.testbed import Language, TokenTruth, known_truth
from icrm_lib.testbed.grammar import Walk

GRID = 2**20  # of beliefs, so that rounding makes no two states of one
DEPTHS = 2**6  # more than the tokens of any phrase, name or link


@dataclass(frozen=True)
class Responses:
    """Both sides of B pairs: rows 0..B-1 chosen, B..2B-1 their rejected partners. T tokens at most, the closing one in.

    Attributes:
        states: number of the grammar state after each token; 0 outside the mask. int64. Shape: (2B, T).
        mask: True on response tokens. Bool. Shape: (2B, T).
        probs: the generator's probability of each token, in [0, 1]; 0 outside the mask. Shape: (2B, T).
        expected: the generator's expectation of the probability of the token at t, given those before it:
            sum_v P(v | tokens < t)^2. None unless asked for; 0 outside the mask. Shape: (2B, T).
        tokens: token ids; 0 outside the mask. int64. Shape: (2B, T).
        gold: gold scores. Shape: (2B,).
        truth: what is known of the tokens, one a row. Length 2B.
    """

    states: np.ndarray
    mask: np.ndarray
    probs: np.ndarray
    expected: np.ndarray | None
    tokens: np.ndarray
    gold: np.ndarray
    truth: list[TokenTruth]

    def of_pairs(self, start: int, stop: int) -> "Responses":
        """Return the pairs start..stop-1, both sides."""
        half = len(self.mask) // 2
        rows = np.r_[start:stop, half + start : half + stop]
        arrays = [
            None if array is None else array[rows] for array in (self.states, self.mask, self.probs, self.expected)
        ]
        return Responses(*arrays, self.tokens[rows], self.gold[rows], [self.truth[row] for row in rows])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each response. Shape: (2B,)."""
        return self.mask.sum(axis=1)

    def closing_states(self) -> np.ndarray:
        """State after the closing token of each response. Shape: (2B,)."""
        return self.states[np.arange(len(self.mask)), self.lengths - 1]


def draw_responses(
    language: Language,
    n_pairs: int,
    rng: np.random.Generator,
    *,
    generator: Language | None = None,
    prompts: Sequence[str] | None = None,
    expectations: bool = False,
) -> tuple[Responses, int]:
    """Draw labelled pairs and look up all that is known of their tokens.

    Args:
        language: writes the responses.
        n_pairs: B.
        rng: source of randomness.
        generator: says how probable tokens are; None for the writer itself. Another language must know the writer's
            words: the same `subword`, and every token of the responses possible.
        prompts: drawn from evenly; all of the language's by default.
        expectations: also fill `Responses.expected`, which takes several times as long.

    Returns:
        (responses, states): the pairs, and how many different states occur.

    Raises:
        ValueError: a response that the generator cannot write.
    """
    pairs = language.preference_pairs(n_pairs, rng, prompts=prompts)
    rows, starts = _token_ids(language, pairs)
    walks = [language.walk(ids)[1] for ids in rows]
    asked = walks if generator in (None, language) else [generator.walk(ids)[1] for ids in rows]
    lengths = np.array([len(walk.nodes) - 1 for walk in walks])
    mask = np.arange(lengths.max()) < lengths[:, None]
    _, numbers = np.unique(np.concatenate([_keys(walk) for walk in walks]), return_inverse=True)
    expected = _expected(asked, len(language.tokenizer)) if expectations else None
    tokens = np.concatenate([ids[start:] for ids, start in zip(rows, starts, strict=True)])
    gold = np.array([pair[f"{side}_score"] for side in ("chosen", "rejected") for pair in pairs])
    responses = Responses(
        states=_spread(mask, numbers),
        mask=mask,
        probs=_spread(mask, np.concatenate([walk.probs() for walk in asked])),
        expected=None if expected is None else _spread(mask, expected),
        tokens=_spread(mask, tokens),
        gold=gold,
        truth=known_truth(language, rows, starts),
    )
    return responses, int(numbers.max()) + 1


def _token_ids(language: Language, pairs: list[dict]) -> tuple[list[list[int]], list[int]]:
    """Token ids of all chosen, then all rejected conversations, and where their responses start."""
    tokenizer = language.tokenizer
    prompts = list(dict.fromkeys(pair["prompt"] for pair in pairs))
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    # A prompt is rendered once, and the responses at once, without the template, which puts nothing but <eos> there.
    rendered = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=False)
    before = dict(zip(prompts, rendered, strict=True))
    texts = [pair[side] for side in ("chosen", "rejected") for pair in pairs]
    heads = [before[pair["prompt"]] for _ in range(2) for pair in pairs]
    replies = tokenizer(texts)["input_ids"]
    rows = [[*head, *reply, tokenizer.eos_token_id] for head, reply in zip(heads, replies, strict=True)]
    return rows, [len(head) for head in heads]


def _keys(walk: Walk) -> np.ndarray:
    """One integer for the state after each token: context, depth in the slot, and belief over outcomes. Shape: (t,)."""
    weights = walk.weights()[1:]
    beliefs = np.round(weights[:, :2] / weights.sum(axis=1, keepdims=True) * GRID).astype(np.int64)
    opens = walk.opens_slot()
    places = np.arange(len(opens))
    depths = places - np.maximum.accumulate(np.where(opens, places, 0))
    key = walk.contexts[1:].astype(np.int64) * DEPTHS + depths
    return (key * (GRID + 1) + beliefs[:, 0]) * (GRID + 1) + beliefs[:, 1]


def _expected(walks: list[Walk], size: int) -> np.ndarray:
    """sum_v P(v | prefix)^2 before each response token of all walks; what is equal is computed once."""
    grammar = walks[0].grammar
    complete = grammar.outcome_array >= 0
    goes_on = np.array([bool(children) for children in grammar.children])
    topics = np.repeat([walk.topic for walk in walks], [len(walk.nodes) - 1 for walk in walks])
    nodes = np.concatenate([walk.nodes[:-1] for walk in walks])
    contexts = np.concatenate([walk.contexts[:-1] for walk in walks])
    # After words that are complete and cannot go on it does not matter which they are, but for their outcome; within
    # words that leave one outcome the context does not.
    settled = ((grammar.masses[topics, nodes] > 0).sum(axis=1) == 1) & ~complete[nodes]
    place = np.where(goes_on[nodes], nodes, -1 - grammar.outcome_array[nodes])
    keys = np.column_stack([topics, place, np.where(settled, -1, contexts)])
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    sums = [
        float(np.square(Walk(grammar, topics[i], nodes[i : i + 1], contexts[i : i + 1]).next_probs(size)).sum())
        for i in first
    ]
    return np.array(sums)[inverse]


def _spread(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Put the tokens of all responses, one after the other, where the mask is True; 0 elsewhere."""
    spread = np.zeros(mask.shape, dtype=values.dtype)
    spread[mask] = values
    return spread
