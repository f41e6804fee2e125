"""The grammar of the generated language: what may stand in a slot, and what a slot leads to.

A response is a chain of *slots* (opener, phrase, name, place, link). A slot offers *items*: token sequences, each with
an outcome (the quality of a phrase; go on or stop for a link). Inside a slot the belief is the set of items that begin
with the tokens seen: a node of a trie. Between slots it is a *context*: clauses so far, score so far, last quality.
Values follow backwards over contexts. So everything stays exact however words are split into tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from icrm_lib.testbed.draws import NO_CLAUSE_YET, Chances
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
        scores: (C, 3): E[gold score | context, outcome].
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
        self.scores: list | np.ndarray = []
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

    def finish(self) -> None:
        """Turn lists into arrays, and check that a token never both goes on with an item and opens a slot."""
        self.masses, self.ended = np.stack(self.masses, axis=1), np.stack(self.ended, axis=1)
        self.priors, self.values, self.scores = map(np.array, (self.priors, self.values, self.scores))
        self.outcome_array = np.array(self.outcomes)
        starts = {token for root in self.roots for token in self.children[root]}
        for children, outcome in zip(self.children, self.outcomes, strict=True):
            if outcome >= 0 and not starts.isdisjoint(children):
                both = sorted(starts.intersection(children))
                raise ValueError(f"tokens {both}: must not both extend an item and open a slot; change a word list.")


def build_grammar(chances: Chances, threshold: int, encode: Callable[[str], list[int]], end: str) -> Grammar:
    """Build the tables of a language.

    Args:
        chances: of all that may stand in a response.
        threshold: gold score from which on a response has the top score.
        encode: text -> token ids.
        end: closing token.
    """
    grammar = Grammar()
    _add_items(grammar, chances, encode, end)
    grammar.first_context = _add_context(grammar, {}, chances, threshold, Context(OPENER, 0, 0, NO_CLAUSE_YET))
    grammar.finish()
    return grammar


def _add_items(grammar: Grammar, chances: Chances, encode: Callable, end: str) -> None:
    """Put every slot's items into the trie, each with P(item | outcome), for all topics at once."""

    def add(root: int, text: str, outcome: int, prob: float | np.ndarray) -> None:
        grammar.add_item(root, encode(text), outcome, prob)

    for opener in OPENERS:
        grammar.opener_roots.append(grammar.add_node())
        add(grammar.opener_roots[-1], opener, 0, 1.0)
    forms = np.array([1 - chances.alternative_probability, chances.alternative_probability])
    for row, entries in enumerate(PHRASES):
        for i, entry in enumerate(entries):
            for text, prob in zip(entry.texts(), np.outer(forms, forms).flat, strict=True):
                add(grammar.roots[PHRASE], text, row, chances.verbs[:, row, i] * prob)
    for name, place in zip(NAMES[: chances.names], PLACES[: chances.names], strict=True):
        add(grammar.roots[NAME], chances.links[0] + name, 0, 1 / chances.names)
        add(grammar.roots[PLACE], chances.links[1] + place, 0, 1 / chances.names)
    for connector, prob in CONNECTORS:
        add(grammar.roots[LINK], connector, CONTINUE, prob)
    add(grammar.roots[LINK], "." + end, STOP, 1.0)


def _add_context(
    grammar: Grammar, known: dict[Context, int], chances: Chances, threshold: int, context: Context
) -> int:
    """Number a context and all after it.

    The value of an outcome is that of the context it leads to: a backward recursion, P(e | context) = sum over
    outcomes of P(outcome | context) P(e | next context). So is its expected score.
    """
    if context not in known:
        prior, steps = _steps(context, chances)
        following = [_add_context(grammar, known, chances, threshold, step) for step in steps]
        values = [float(np.dot(grammar.priors[step], grammar.values[step])) for step in following]
        scores = [float(np.dot(grammar.priors[step], grammar.scores[step])) for step in following]
        padding = [0.0] * (N_OUTCOMES - len(prior))
        grammar.slots.append(context.slot)
        grammar.priors.append([*prior, *padding])
        grammar.values.append([*(values or [float(context.score >= threshold)]), *padding])
        grammar.scores.append([*(scores or [float(context.score)]), *padding])
        grammar.following.append(following)
        known[context] = len(grammar.slots) - 1
    return known[context]


def _steps(context: Context, chances: Chances) -> tuple[Sequence[float], list[Context]]:
    """Return the probability of each outcome in a context, and the context each leads to."""
    slot, clauses, score, last = context
    words = chances.idiosyncratic_words
    if slot == OPENER:
        return [1.0], [Context(PHRASE, 0, 0, last)]
    if slot == PHRASE:
        after = NAME if words >= 1 else LINK
        return chances.qualities[last], [Context(after, clauses + 1, score + q, q + 1) for q in QUALITIES]
    if slot in (NAME, PLACE):
        return [1.0], [context._replace(slot=PLACE if slot == NAME and words == 2 else LINK)]
    if slot == LINK:
        fewest, most = chances.clauses
        # Uniform number of clauses: of those numbers still open, the present one is as likely as any.
        stop = 1 / (most - clauses + 1) if clauses >= fewest else 0.0
        end = context._replace(slot=DONE)
        return [1 - stop, stop], [context._replace(slot=PHRASE) if clauses < most else end, end]
    return [1.0], []


class Walk(NamedTuple):
    """A response's way through the grammar; nodes and contexts begin with those of the empty response."""

    grammar: Grammar
    topic: int
    nodes: np.ndarray  # (t + 1,) for t response tokens
    contexts: np.ndarray  # (t + 1,)

    def weights(self) -> np.ndarray:
        """P(outcome, the slot's tokens so far | context) after each response token, (t + 1, 3)."""
        return self.grammar.masses[self.topic, self.nodes] * self.grammar.priors[self.contexts]

    def opens_slot(self) -> np.ndarray:
        """Whether each response token is the first of a slot, (t,) bool."""
        return self.contexts[1:] != self.contexts[:-1]

    def probs(self) -> np.ndarray:
        """Probability of each response token, (t,); 0 or nan at the first impossible one, anything after it."""
        grammar, node, context = self.grammar, self.nodes[:-1], self.contexts[:-1]
        totals = self.weights().sum(axis=1)
        # A token that opens a slot also says that the item before it was complete. A slot's root weighs 1.
        complete = grammar.priors[context, np.maximum(grammar.outcome_array[node], 0)] * grammar.ended[self.topic, node]
        with np.errstate(divide="ignore", invalid="ignore"):
            return totals[1:] / totals[:-1] * np.where(self.opens_slot(), complete, 1.0)

    def values(self) -> np.ndarray:
        """P(top score | prefix) before and after each response token, (t + 1,)."""
        return self._expected(self.grammar.values)

    def scores(self) -> np.ndarray:
        """E[gold score | prefix] before and after each response token, (t + 1,)."""
        return self._expected(self.grammar.scores)

    def _expected(self, known: np.ndarray) -> np.ndarray:
        weights = self.weights()
        return (weights * known[self.contexts]).sum(axis=1) / weights.sum(axis=1)

    def revealed(self) -> tuple[np.ndarray, np.ndarray]:
        """Which tokens reveal a clause's quality, (t,) bool, and, valid there, the quality, (t,)."""
        possible = self.grammar.masses[self.topic, self.nodes] > 0
        n_possible = possible.sum(axis=1)
        n_before = np.where(self.opens_slot(), len(QUALITIES), n_possible[:-1])
        in_phrase = np.array(self.grammar.slots)[self.contexts[1:]] == PHRASE
        return in_phrase & (n_possible[1:] == 1) & (n_before > 1), possible[1:].argmax(axis=1) - 1

    def next_probs(self, size: int) -> np.ndarray | None:
        """Distribution of the next token, (size,) with sum 1; None where the response has ended."""
        grammar = self.grammar
        node, context = self.nodes[-1], self.contexts[-1]
        prior, masses = grammar.priors[context], grammar.masses[self.topic]
        probs = np.zeros(size)
        going_on, outcome = grammar.children[node], grammar.outcomes[node]
        if going_on:  # the item has further tokens
            probs[list(going_on)] = masses[list(going_on.values())] @ prior
        if outcome >= 0:  # the item may be complete; then the next slot begins
            following = grammar.following[context][outcome]
            starts = grammar.children[grammar.roots[grammar.slots[following]]]
            if not starts:
                return None
            start_probs = masses[list(starts.values())] @ grammar.priors[following]
            probs[list(starts)] = prior[outcome] * grammar.ended[self.topic, node] * start_probs
        return probs / (masses[node] @ prior)


def follow(grammar: Grammar, topic: int, response: list[int]) -> Walk:
    """Walk along a response as far as its tokens stand in the grammar, be they of probability zero or not."""
    nodes, contexts = [grammar.opener_roots[topic]], [grammar.first_context]
    for token in response:
        node, context = nodes[-1], contexts[-1]
        child, outcome = grammar.children[node].get(token), grammar.outcomes[node]
        if child is None and outcome >= 0:  # the item is complete: on to the next slot
            context = grammar.following[context][outcome]
            child = grammar.children[grammar.roots[grammar.slots[context]]].get(token)
        if child is None:
            break
        nodes.append(child)
        contexts.append(context)
    return Walk(grammar, topic, np.array(nodes), np.array(contexts))
