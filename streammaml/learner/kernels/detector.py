"""Page-Hinkley, one for each context, and the signal that feeds it.

Rule: equal to river's ``PageHinkley(mode="up")`` to the bit. Fed with the loss, not the 0/1 error:
the alarm comes about twice as early.

References:
    Page, "Continuous inspection schemes", 1954. river.drift.PageHinkley.
"""

from __future__ import annotations

import numpy as np

from streammaml.events import Floats
from streammaml.learner.kernels.compiler import jit
from streammaml.learner.state import Policy

STABLE, WARNING, DRIFT = 0, 1, 2
SIGNAL_FLOOR = 0.02
ERROR_RATE = 0.02
ERROR_LIMIT = 4.0
ERROR_FLOOR = 1e-3
COUNT, MEAN, SUM, LOWEST = 0, 1, 2, 3


@jit
def reset(detector: Floats) -> None:
    """Start a new detector [4]: count, mean, cumulative sum, its minimum."""
    detector[COUNT] = 0.0
    detector[MEAN] = 0.0
    detector[SUM] = 0.0
    detector[LOWEST] = np.inf


@jit
def update(detector: Floats, signal: float, policy: Policy) -> int:
    """Take one loss; return the drift level. Warning: the statistic is above half the threshold."""
    detector[COUNT] += 1.0
    detector[MEAN] += (1.0 / detector[COUNT]) * (signal - detector[MEAN])
    deviation = signal - detector[MEAN]
    detector[SUM] = policy.alpha * detector[SUM] + deviation - policy.delta
    detector[LOWEST] = min(detector[LOWEST], detector[SUM])
    if detector[COUNT] < policy.min_instances:
        return STABLE
    statistic = detector[SUM] - detector[LOWEST]
    if statistic > policy.threshold:
        return DRIFT
    return WARNING if statistic > 0.5 * policy.threshold else STABLE


@jit
def class_signal(probability: float) -> float:
    """Log-loss of the true class's probability, floored at .02."""
    return float(-np.log(max(probability, SIGNAL_FLOOR)))


@jit
def error_signal(error_scale: Floats, row: int, error: float) -> float:
    """|error| in units of the context's running mean of it, at most 4; then moves that mean.

    A mean below .001 counts as that, or a context that was quiet for long would fire for as long.
    """
    size = abs(error)
    scale = error_scale[row]
    moved = (1.0 - ERROR_RATE) * scale + ERROR_RATE * min(size, ERROR_LIMIT * scale)
    error_scale[row] = max(moved, ERROR_FLOOR)
    return float(min(size / scale, ERROR_LIMIT))
