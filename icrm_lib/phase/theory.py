"""What the gradient of the consistency term says of the optimum, to first order.

With p and the neighbours' u held fixed,  dA/dR_t = -(1 - u_t) (p_{t+1} u_{t+1} + p_t u_{t-1}) / 2  for a chosen
response, and with the other sign for a rejected one. A state of the table is at rest where the sum over its visits is
0, so weights move it by one Newton step from where p = 1 brings it. A factor that p_t and p_{t+1} share at all visits
of a state moves nothing; what differs between visits of either label moves it, and so does the ratio of p_{t+1} to p_t.
"""

import numpy as np
from scipy.special import expit

from icrm_lib.phase.responses import Responses

LEAST_VISITS = 50  # of a state, on each side; of fewer the sum is mostly noise


def first_order_shift(
    table: np.ndarray, responses: Responses, *, of_states: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Predict how the probabilities as weights move the rewards of a table that was trained with p = 1.

    Args:
        table: rewards after training with weighting "uniform". Shape: (n_states,).
        responses: pairs to sum over, those of the training.
        of_states: take p_{t+1} and p_t at their means over the visits of a state, so that within a state they know
            nothing of the label. What is then left of the shift comes of p_{t+1} : p_t, which says whose u counts:
            that of the prefix to come, which knows more of the label, or of the one before.

    Returns:
        (shift, visits): predicted change of each state's reward, nan where a side has fewer than 50 visits or the state
        closes a response, where Bradley-Terry also pulls; visits of each state. Shape of each: (n_states,).
    """
    force, stiffness = force_and_stiffness(table, responses, of_states=of_states)
    mask, half = responses.mask, len(responses.mask) // 2
    visits = np.bincount(responses.states[mask], minlength=len(table))
    on_chosen = np.bincount(responses.states[:half][mask[:half]], minlength=len(table))
    known = np.minimum(on_chosen, visits - on_chosen) >= LEAST_VISITS
    known[responses.closing_states()] = False
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, force / stiffness, np.nan), visits


def force_and_stiffness(
    table: np.ndarray, responses: Responses, *, of_states: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return -2 sum(M) dA/dR of each state and, u of the neighbours held fixed, minus that of its derivative by R.

    Args: see `first_order_shift`.

    Returns:
        two sums over a state's visits. Shape of each: (n_states,).
    """
    mask, half = responses.mask, len(responses.mask) // 2
    rewards = np.where(mask, table[responses.states], 0.0)
    means = rewards.sum(axis=1) / responses.lengths
    sign = np.repeat([1.0, -1.0], half)[:, None]
    u = np.where(mask, expit(sign * (rewards - np.roll(means, half)[:, None])), 0.0)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(responses.states[mask], weights=values[mask], minlength=len(table))

    def of(values: np.ndarray) -> np.ndarray:
        return (total(values) / np.maximum(total(np.ones(mask.shape)), 1))[responses.states] if of_states else values

    # No token follows the closing one, and none before the response counts: 0 there.
    weights = of(_shifted(responses.probs, -1)) * _shifted(u, -1)  # p_{t+1} u_{t+1}
    weights += of(np.where(_shifted(mask, 1), responses.probs, 0.0)) * _shifted(u, 1)  # p_t u_{t-1}
    return total(sign * (1 - u) * weights), total(u * (1 - u) * weights)


def _shifted(values: np.ndarray, by: int) -> np.ndarray:
    """Values of the token before (by = 1) or after (by = -1), 0 where there is none."""
    shifted = np.roll(values, by, axis=1)
    shifted[:, 0 if by == 1 else -1] = 0
    return shifted


def compare_shift(predicted: np.ndarray, observed: np.ndarray, visits: np.ndarray) -> dict[str, float]:
    """Compare predicted and observed shifts, each state weighing as much as it is visited; nan ones are left out.

    Args:
        predicted, observed, visits: shape of each: (n_states,).

    Returns:
        `correlation`, in [-1, 1]; `slope` of observed on predicted; `predicted`, `observed`: standard deviations;
        `states`: how many were compared. nan where there are fewer than two.
    """
    known = np.isfinite(predicted)
    states = int(known.sum())
    if states < 2:
        return dict.fromkeys(("correlation", "slope", "predicted", "observed"), float("nan")) | {"states": states}
    x, y, weights = predicted[known], observed[known], visits[known]
    covariance = np.cov(x, y, aweights=weights)
    spread = np.sqrt(np.diag(covariance))
    return {
        "correlation": float(covariance[0, 1] / spread.prod()) if spread.all() else float("nan"),
        "slope": float(covariance[0, 1] / covariance[0, 0]) if spread[0] else float("nan"),
        "predicted": float(spread[0]),
        "observed": float(spread[1]),
        "states": states,
    }
