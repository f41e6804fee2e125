"""How likely everything in a response is, responses drawn accordingly, and noisy labels of pairs of them.

It reads no grammar, so that it and the exact probabilities can be checked against each other.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from icrm_lib.testbed.words import CONNECTORS, NAMES, OPENERS, PHRASES, PLACES, PROMPTS, QUALITIES, TOPICS, WORD_OR_MARK

TOPIC_SHARPNESS = 1.2  # standard deviation, over topics, of a verb's log weight
NO_CLAUSE_YET = 3  # as the quality before the first clause; qualities are rows 0, 1, 2


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Return a stream of its own for each purpose, so that knobs do not disturb each other."""
    return np.random.default_rng([seed, ("prompts", "verbs", "held out").index(purpose)])


def verb_probs(
    seed: int, verbs_per_class: int, coupling: float, held_out_verbs: float, only_held_out_verbs: bool
) -> np.ndarray:
    """(topics, 3, 40): P(entry of PHRASES | topic, quality); see `Language` for the knobs."""
    taste = TOPIC_SHARPNESS * stream(seed, "verbs").normal(size=(len(TOPICS), 3, len(PHRASES[0])))
    powers = 1 + coupling * np.array(QUALITIES)
    weights = np.exp(taste * powers[:, None])
    weights[..., verbs_per_class:] = 0
    rng = stream(seed, "held out")
    every_verb = [entry.verb for row in PHRASES for entry in row]
    for row, entries in enumerate(PHRASES):
        # A shared verb could be unseen in one class and seen in another.
        eligible = [i for i, entry in enumerate(entries[:verbs_per_class]) if every_verb.count(entry.verb) == 1]
        n_held_out = held_out_count(held_out_verbs, verbs_per_class)
        held_out = np.isin(np.arange(len(entries)), rng.permutation(eligible)[:n_held_out])
        weights[:, row, held_out != only_held_out_verbs] = 0
    return weights / weights.sum(axis=2, keepdims=True)


def held_out_count(held_out_verbs: float, verbs_per_class: int) -> int:
    """How many verbs of a class are held out, as far as it has as many that no other class has."""
    return round(held_out_verbs * verbs_per_class)


def quality_probs(persistence: float) -> np.ndarray:
    """(4, 3): P(quality of a clause | that of the last), rows -1, 0, +1 and NO_CLAUSE_YET."""
    other = (1 - persistence) / 2
    return np.vstack([np.where(np.eye(3) > 0, persistence, other), np.full(3, 1 / 3)])


class Chances(NamedTuple):
    """What decides how likely a response is."""

    qualities: np.ndarray  # (4, 3): P(quality of a clause | that of the last)
    verbs: np.ndarray  # (topics, 3, 40): P(entry of PHRASES | topic, quality)
    clauses: tuple[int, int]
    idiosyncratic_words: int
    names: int  # of names and of places
    alternative_probability: float  # of the second form of a phrase's second word; likewise its third
    links: tuple[str, str]  # what stands before a name, and before a place

    def draw(self, topics: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """Draw a response for each of topics (n,): texts and gold scores (n,)."""
        n, most = len(topics), self.clauses[1]
        lengths = rng.integers(self.clauses[0], most + 1, size=n)
        rows, phrases = self._phrases(topics, rng)
        links, link_probs = zip(*CONNECTORS, strict=True)
        before = np.array(links, dtype=object)[rng.choice(len(links), p=link_probs, size=(n, most))]
        before[:, 0] = " "
        clauses = before + phrases
        # Drawn whether used or not, so that the knob changes nothing else.
        names, places = rng.integers(self.names, size=(2, n, most))
        if self.idiosyncratic_words >= 1:
            clauses = clauses + (" " + self.links[0]) + np.array(NAMES, dtype=object)[names]
        if self.idiosyncratic_words == 2:
            clauses = clauses + (" " + self.links[1]) + np.array(PLACES, dtype=object)[places]
        drawn = zip(topics, clauses, lengths, strict=True)
        texts = [OPENERS[topic] + "".join(row[:length]) + "." for topic, row, length in drawn]
        gold = np.where(np.arange(most) < lengths[:, None], rows - 1, 0).sum(axis=1)
        return texts, gold.astype(np.float64)

    def _phrases(self, topics: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw as many phrases as a response may have: row of PHRASES and text, (n, most) each."""
        n, most = len(topics), self.clauses[1]
        transitions, verbs = np.cumsum(self.qualities, axis=1), np.cumsum(self.verbs, axis=2)
        # Divided by the last entry, so that rounding cannot leave a sliver to a verb of weight zero.
        transitions, verbs = transitions / transitions[:, -1:], verbs / verbs[..., -1:]
        last = np.full(n, NO_CLAUSE_YET)
        rows = np.empty((n, most), dtype=int)  # of PHRASES: quality + 1
        for k in range(most):
            rows[:, k] = last = (rng.random((n, 1)) >= transitions[last]).sum(axis=1)
        entries = (rng.random((n, most, 1)) >= verbs[topics[:, None], rows]).sum(axis=2)
        second, third = rng.random((2, n, most)) < self.alternative_probability
        phrases = np.array([[entry.texts() for entry in row] for row in PHRASES], dtype=object)
        return rows, phrases[rows, entries, 2 * second + third]


def draw_pairs(
    chances: Chances, prompts: list[str], rng: np.random.Generator, *, noise: float, confounding: float
) -> Iterator[dict]:
    """Draw one pair for each prompt and yield those that are kept.

    Args:
        chances: of responses.
        prompts: n of the language's prompts.
        rng: source of randomness.
        noise: temperature of the Bradley-Terry label; 0 is noiseless.
        confounding: `Language.length_confounding`.
    """
    topics = np.array([PROMPTS[prompt] for prompt in prompts])
    (first, first_gold), (second, second_gold) = chances.draw(topics, rng), chances.draw(topics, rng)
    difference = first_gold - second_gold
    # sigmoid(difference / noise), free of overflow; without noise the better one, ties evenly
    wins = np.tanh(difference / noise / 2) if noise > 0 else np.sign(difference)
    first_wins = (1 + wins) / 2
    swap = rng.random(len(topics)) >= first_wins
    luck = rng.random(len(topics))
    for i, prompt in enumerate(prompts):
        sides = [(first[i], float(first_gold[i])), (second[i], float(second_gold[i]))]
        (chosen, chosen_score), (rejected, rejected_score) = sides[::-1] if swap[i] else sides
        longer = np.sign(len(WORD_OR_MARK.findall(chosen)) - len(WORD_OR_MARK.findall(rejected)))
        loss = max(0.0, -confounding * longer) if longer else abs(confounding)
        if chosen != rejected and luck[i] >= loss:
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            yield {**row, "chosen_score": chosen_score, "rejected_score": rejected_score}
