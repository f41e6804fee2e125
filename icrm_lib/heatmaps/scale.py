"""The colours of rewards: one scale for all responses that are compared."""

import numpy as np
from matplotlib.colors import TwoSlopeNorm

from icrm_lib.heatmaps.responses import LARGEST, checked, is_drawable


def reward_norm(token_rewards, center: float | None = None) -> TwoSlopeNorm:
    """Return the colour scale of some responses: symmetrical about `center`, reaching the reward farthest from it.

    Args:
        token_rewards: tokens of one response, or {name: tokens}.
        center: the reward that is white; when None the middle between the lowest and the highest (the level of a
            Bradley-Terry reward has no meaning, only differences do).
    """
    rewards = np.array([float(token.reward) for tokens in checked(token_rewards, ()).values() for token in tokens])
    if center is not None and not is_drawable(center):
        raise ValueError(f"center={center} is not finite or beyond {LARGEST:g}; give a reward, or None for the middle")
    center = float((rewards.min() + rewards.max()) / 2) if center is None else center
    reach = max(float(np.abs(rewards - center).max()), 1e-6 * max(1.0, abs(center)))
    return TwoSlopeNorm(center, center - reach, center + reach)


def ink(background) -> str:
    """Black or white, whichever stands out more on a colour."""
    r, g, b = background[:3]
    return "black" if 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.45 else "white"
