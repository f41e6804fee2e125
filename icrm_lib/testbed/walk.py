"""A response's way through the grammar, with exact probabilities and values of all that it passes."""

from typing import NamedTuple

import numpy as np

from icrm_lib.testbed.grammar import PHRASE, Grammar
from icrm_lib.testbed.words import QUALITIES


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
        weights = self.weights()
        return (weights * self.grammar.values[self.contexts]).sum(axis=1) / weights.sum(axis=1)

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
