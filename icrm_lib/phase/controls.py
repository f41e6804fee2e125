"""What of a language and a generator can be measured before any training, with the truth and without it."""

import numpy as np
from scipy.stats import spearmanr

from icrm_lib.phase.responses import Responses

UNLIKELY = 0.5  # a token of lower probability
ASSOCIATED = 2.0  # standard errors from which on a token counts as associated with the label


def known_controls(responses: Responses) -> dict[str, float]:
    """Measure what needs the truth: values, gold scores and states.

    Args:
        responses: B pairs.

    Returns:
        by name, nan where not defined:
        `probability_and_change`, `..._unlikely`: Spearman correlation of p_t and the |change| of P(top score) at t,
        over all tokens and over those of p_t < 0.5. The premise of ICRM is that it is negative.
        `weight_at_changes`: mean p at tokens that move the value over mean p at all others.
        `probability_and_gold`: correlation of a response's mean log p and its gold score.
        `next_and_label`: Cov(p_{t+1}, chosen | state after t), averaged over tokens, over mean p.
        `here_and_label`: the same of p_t, which first-order theory says plays no part.
        `neutral_surprise`: share of the surprisal -log p at tokens that leave the value as it is.
        `moving_tokens`: share of the tokens that move the value.
    """
    values = [truth.values for truth in responses.truth]
    change = np.concatenate([np.abs(np.diff(row)) for row in values])
    follows = responses.mask & (np.arange(responses.mask.shape[1]) > 0)
    probs = responses.probs[follows]
    moves = change > 0
    label = np.broadcast_to(_chosen(responses)[:, None], follows.shape)
    before = responses.states[:, :-1][follows[:, 1:]]
    after = responses.states[follows]
    return {
        "probability_and_change": _spearman(probs, change),
        "probability_and_change_unlikely": _spearman(probs[probs < UNLIKELY], change[probs < UNLIKELY]),
        "weight_at_changes": _ratio_of_means(probs, moves),
        "probability_and_gold": _correlation(_mean_logprobs(responses), responses.gold),
        "next_and_label": _covariance_within(probs, label[follows], before) / float(probs.mean()),
        "here_and_label": _covariance_within(probs, label[follows], after) / float(probs.mean()),
        "neutral_surprise": _share(-np.log(probs), ~moves),
        "moving_tokens": float(moves.mean()),
    }


def measurable_controls(responses: Responses) -> dict[str, float]:
    """Measure what a generator, pairs and their labels show by themselves: the same questions without the truth.

    Instead of a value's change a token has an association with the label, z = (n_chosen - n_rejected) / sqrt(n_chosen +
    n_rejected) for its occurrences on either side. Instead of a state there is the generator's own expectation: given a
    prefix, E[p_{t+1}] = sum_v P(v | prefix)^2 where the generator writes like the data, so that

        E[(p_{t+1} - E[p_{t+1} | prefix]) (chosen - 1/2)] = E[Cov(p_{t+1}, chosen | prefix)].

    Args:
        responses: B pairs with `expected`; neither `truth`, `gold` nor `states` is read.

    Returns:
        by name, nan where not defined:
        `probability_and_association`, `..._unlikely`: Spearman correlation of p_t and |z| of the token.
        `weight_at_associated`: mean p at tokens of |z| >= 2 over mean p at all others.
        `probability_and_label`: correlation of a response's mean log p and its being chosen.
        `next_and_label`: the covariance above, over mean p.
        `neutral_surprise`: share of the surprisal at tokens of |z| < 2.
        `associated_tokens`: share of tokens of |z| >= 2.

    Raises:
        ValueError: no `expected`.
    """
    if responses.expected is None:
        raise ValueError("responses without expected probabilities: draw them with expectations=True")
    follows = responses.mask & (np.arange(responses.mask.shape[1]) > 0)
    chosen = np.broadcast_to(_chosen(responses)[:, None], follows.shape)[follows]
    probs, tokens = responses.probs[follows], responses.tokens[follows]
    size = np.abs(_associations(tokens, chosen))[tokens]
    unlikely, associated = probs < UNLIKELY, size >= ASSOCIATED
    excess = probs - responses.expected[follows]
    return {
        "probability_and_association": _spearman(probs, size),
        "probability_and_association_unlikely": _spearman(probs[unlikely], size[unlikely]),
        "weight_at_associated": _ratio_of_means(probs, associated),
        "probability_and_label": _correlation(_mean_logprobs(responses), _chosen(responses)),
        "next_and_label": float(np.mean(excess * (chosen - 0.5)) / probs.mean()),
        "neutral_surprise": _share(-np.log(probs), ~associated),
        "associated_tokens": float(associated.mean()),
    }


def _chosen(responses: Responses) -> np.ndarray:
    return np.repeat([1.0, 0.0], len(responses.mask) // 2)


def _mean_logprobs(responses: Responses) -> np.ndarray:
    logs = np.log(responses.probs, where=responses.mask, out=np.zeros(responses.mask.shape))
    return logs.sum(axis=1) / responses.lengths


def _associations(tokens: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """z of each token id, 0 for one that does not occur."""
    on_chosen, on_both = np.bincount(tokens, weights=chosen), np.bincount(tokens)
    return (2 * on_chosen - on_both) / np.sqrt(np.maximum(on_both, 1))


def _covariance_within(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> float:
    """Covariance of x and y inside groups, each group weighing as much as it has members; those of one add nothing."""
    counts = np.maximum(np.bincount(groups), 1)
    x, y = (v - (np.bincount(groups, weights=v) / counts)[groups] for v in (x, y))
    size = counts[groups]
    return float(np.mean(x * y * size / np.maximum(size - 1, 1)))


def _share(amounts: np.ndarray, here: np.ndarray) -> float:
    return float(amounts[here].sum() / amounts.sum())


def _ratio_of_means(values: np.ndarray, here: np.ndarray) -> float:
    return float(values[here].mean() / values[~here].mean()) if 0 < here.sum() < len(here) else float("nan")


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    constant = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    return float("nan") if constant else float(spearmanr(x, y).statistic)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")
