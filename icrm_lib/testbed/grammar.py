"""The grammar of the generated language: what may stand in a slot, and what a slot leads to.

A response is a chain of *slots* (opener, phrase, name, place, link). A slot offers *items*: token sequences, each with
an outcome (the quality of a phrase; go on or stop for a link). Inside a slot the belief is the set of items that begin
with the tokens seen: a node of a trie. Between slots it is a *context*: clauses so far, score so far, last quality.
Values follow backwards over contexts. So everything stays exact however words are split into tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from icrm_lib.testbed.chances import ALTERNATIVE_PROBABILITY, NO_CLAUSE_YET
from icrm_lib.testbed.words import CONNECTORS, NAMES, OPENERS, PHRASES, PLACES, QUALITIES, TOPICS

N_OUTCOMES = 3  # of a slot, at most
OPENER, PHRASE, NAME, PLACE, LINK, DONE = range(6)  # the slots
CONTINUE, STOP = 0, 1  # the outcomes of a link


class Context(NamedTuple):
    """Where a response is between two slots."""

    slot: int  # the next one
    clauses: int  # so far
    score: int  # so far
    last: int  # row of the last quality


class Chain(NamedTuple):
    """What decides the chain of slots."""

    qualities: np.ndarray  # (4, 3): P(quality of a clause | that of the last)
    idiosyncratic_words: int
    clauses: tuple[int, int]
    threshold: int

    def steps(self, context: Context) -> tuple[Sequence[float], list[Context]]:
        """Return the probability of each outcome in a context, and the context each leads to."""
        slot, clauses, score, last = context
        if slot == OPENER:
            return [1.0], [Context(PHRASE, 0, 0, last)]
        if slot == PHRASE:
            after = NAME if self.idiosyncratic_words >= 1 else LINK
            return self.qualities[last], [Context(after, clauses + 1, score + q, q + 1) for q in QUALITIES]
        if slot == NAME:
            return [1.0], [Context(PLACE if self.idiosyncratic_words == 2 else LINK, clauses, score, last)]
        if slot == PLACE:
            return [1.0], [Context(LINK, clauses, score, last)]
        if slot == LINK:
            fewest, most = self.clauses
            # Uniform number of clauses: of those numbers still open, the present one is as likely as any.
            stop = 1 / (most - clauses + 1) if clauses >= fewest else 0.0
            end = Context(DONE, clauses, score, last)
            return [1 - stop, stop], [Context(PHRASE, clauses, score, last) if clauses < most else end, end]
        return [1.0], []


class Grammar:
    """Trie nodes of all slots, and the contexts between slots, as flat tables.

    Attributes (N nodes, C contexts; outcomes padded to 3):
        children: N dictionaries {token: node}.
        outcomes, outcome_array: N integers: outcome of the item that is complete at the node, -1 for none.
        masses: (topics, N, 3): probability, given the outcome, of the items that pass through the node.
        ended: (topics, N): probability, given its outcome, of the item that is complete at the node.
        roots, opener_roots: root node of each slot; of each topic's opener.
        slots: C slots.
        priors: (C, 3): probability of each outcome in a context.
        values: (C, 3): P(top score | context, outcome).
        following: C lists of the next context by outcome.
    """

    def __init__(self):
        self.children: list[dict[int, int]] = []
        self.outcomes: list[int] = []
        self.masses: list | np.ndarray = []
        self.ended: list | np.ndarray = []
        self.slots: list[int] = []
        self.priors: list | np.ndarray = []
        self.values: list | np.ndarray = []
        self.following: list[list[int]] = []
        self.first_context = 0
        self.opener_roots: list[int] = []
        self.roots = [self.add_node() for _ in range(DONE + 1)]

    def add_node(self) -> int:
        """Add a node without items; returns its number."""
        self.children.append({})
        self.outcomes.append(-1)
        self.masses.append(np.zeros((len(TOPICS), N_OUTCOMES)))
        self.ended.append(np.zeros(len(TOPICS)))
        return len(self.children) - 1

    def add_item(self, root: int, tokens: list[int], outcome: int, prob: float | np.ndarray) -> None:
        """Add a token sequence below root; prob, a number or (topics,), is P(item | outcome)."""
        node = root
        self.masses[node][:, outcome] += prob
        for token in tokens:
            if token not in self.children[node]:
                self.children[node][token] = self.add_node()
            node = self.children[node][token]
            self.masses[node][:, outcome] += prob
        if self.outcomes[node] >= 0:
            raise ValueError(f"tokens {tokens}: must be one item of a slot, not two; change a word list.")
        self.outcomes[node] = outcome
        self.ended[node] += prob

    def add_context(self, slot: int, prior: Sequence[float], values: list[float], following: list[int]) -> int:
        """Add a context; returns its number."""
        padding = [0.0] * (N_OUTCOMES - len(prior))
        self.slots.append(slot)
        self.priors.append([*prior, *padding])
        self.values.append([*values, *padding])
        self.following.append(following)
        return len(self.slots) - 1

    def context_value(self, context: int) -> float:
        """P(top score | context)."""
        return float(np.dot(self.priors[context], self.values[context]))

    def finish(self) -> None:
        """Turn lists into arrays, and check that a token never both goes on with an item and opens a slot."""
        self.masses, self.ended = np.stack(self.masses, axis=1), np.stack(self.ended, axis=1)
        self.priors, self.values = np.array(self.priors), np.array(self.values)
        self.outcome_array = np.array(self.outcomes)
        starts = {token for root in self.roots for token in self.children[root]}
        for children, outcome in zip(self.children, self.outcomes, strict=True):
            if outcome >= 0 and not starts.isdisjoint(children):
                both = sorted(starts.intersection(children))
                raise ValueError(f"tokens {both}: must not both extend an item and open a slot; change a word list.")


def build_grammar(encode: Callable[[str], list[int]], end: str, verbs: np.ndarray, names: int, chain: Chain) -> Grammar:
    """Build the tables of a language.

    Args:
        encode: text -> token ids.
        end: closing token.
        verbs: (topics, 3, 40): P(entry of PHRASES | topic, quality).
        names: number of names and of places, all equally probable.
        chain: the chain of slots.
    """
    grammar = Grammar()
    _add_items(grammar, encode, end, verbs, names)
    grammar.first_context = _add_context(grammar, {}, chain, Context(OPENER, 0, 0, NO_CLAUSE_YET))
    grammar.finish()
    return grammar


def _add_items(grammar: Grammar, encode: Callable, end: str, verbs: np.ndarray, names: int) -> None:
    """Put every slot's items into the trie, each with P(item | outcome), for all topics at once."""

    def add(root: int, text: str, outcome: int, prob: float | np.ndarray) -> None:
        grammar.add_item(root, encode(text), outcome, prob)

    for opener in OPENERS:
        grammar.opener_roots.append(grammar.add_node())
        add(grammar.opener_roots[-1], opener, 0, 1.0)
    forms = np.array([1 - ALTERNATIVE_PROBABILITY, ALTERNATIVE_PROBABILITY])
    for row, entries in enumerate(PHRASES):
        for i, entry in enumerate(entries):
            for text, prob in zip(entry.texts(), np.outer(forms, forms).flat, strict=True):
                add(grammar.roots[PHRASE], text, row, verbs[:, row, i] * prob)
    for name, place in zip(NAMES[:names], PLACES[:names], strict=True):
        add(grammar.roots[NAME], f"with {name}", 0, 1 / names)
        add(grammar.roots[PLACE], f"in {place}", 0, 1 / names)
    for connector, prob in CONNECTORS:
        add(grammar.roots[LINK], connector, CONTINUE, prob)
    add(grammar.roots[LINK], "." + end, STOP, 1.0)


def _add_context(grammar: Grammar, known: dict[Context, int], chain: Chain, context: Context) -> int:
    """Number a context and all after it.

    The value of an outcome is that of the context it leads to: a backward recursion, P(e | context) = sum over
    outcomes of P(outcome | context) P(e | next context).
    """
    if context not in known:
        prior, steps = chain.steps(context)
        following = [_add_context(grammar, known, chain, step) for step in steps]
        is_top = float(context.score >= chain.threshold)
        values = [grammar.context_value(step) for step in following] or [is_top]
        known[context] = grammar.add_context(context.slot, prior, values, following)
    return known[context]
