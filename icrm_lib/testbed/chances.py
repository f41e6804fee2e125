"""How likely each quality and each verb of a clause is."""

import numpy as np

from icrm_lib.testbed.words import PHRASES, TOPICS

ALTERNATIVE_PROBABILITY = 0.15  # of the second form of a phrase's second word; likewise its third
TOPIC_SHARPNESS = 1.2  # standard deviation, over topics, of a verb's log weight
NO_CLAUSE_YET = 3  # as the quality before the first clause; qualities are rows 0, 1, 2


def stream(seed: int, purpose: str) -> np.random.Generator:
    """Return a stream of its own for each purpose, so that knobs do not disturb each other."""
    return np.random.default_rng([seed, ("prompts", "verbs", "held out").index(purpose)])


def quality_probs(persistence: float) -> np.ndarray:
    """(4, 3): P(quality of a clause | that of the last), rows -1, 0, +1 and NO_CLAUSE_YET."""
    other = (1 - persistence) / 2
    return np.vstack([np.where(np.eye(3) > 0, persistence, other), np.full(3, 1 / 3)])


def verb_probs(seed: int, held_out_verbs: float, only_held_out_verbs: bool) -> np.ndarray:
    """(topics, 3, 40): P(entry of PHRASES | topic, quality)."""
    weights = np.exp(TOPIC_SHARPNESS * stream(seed, "verbs").normal(size=(len(TOPICS), 3, len(PHRASES[0]))))
    rng = stream(seed, "held out")
    every_verb = [entry.verb for row in PHRASES for entry in row]
    for row, entries in enumerate(PHRASES):
        # A shared verb could be unseen in one class and seen in another.
        eligible = [i for i, entry in enumerate(entries) if every_verb.count(entry.verb) == 1]
        n_held_out = round(held_out_verbs * len(entries))
        held_out = np.isin(np.arange(len(entries)), rng.permutation(eligible)[:n_held_out])
        weights[:, row, held_out != only_held_out_verbs] = 0
    return weights / weights.sum(axis=2, keepdims=True)
