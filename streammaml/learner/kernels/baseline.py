"""The series ``online``: plain online gradient descent, from the same start, on the same inputs.

Off unless ``baseline_rate`` is above 0. One step at each label, on that example alone.
"""

from __future__ import annotations

import numpy as np

from streammaml.events import Float32s
from streammaml.learner.kernels.adapt import descend
from streammaml.learner.kernels.compiler import jit
from streammaml.learner.kernels.network import gradient
from streammaml.learner.kernels.vectors import copy, norm
from streammaml.learner.state import Meta, Policy, Scratch, StreamState


@jit
def learn(
    weights: Float32s,
    target: float,
    meta: Meta,
    stream: StreamState,
    policy: Policy,
    scratch: Scratch,
) -> None:
    """One clipped step of ``weights`` [P] on the input in scratch; back to θ if not finite."""
    scratch.y[0] = target
    step = scratch.gradient
    gradient(weights, meta, scratch.y, stream.known, policy.regression, 1, scratch, step)
    length = norm(step, scratch.sums)
    if length > 0.0 and np.isfinite(length):
        factor = policy.baseline_rate * min(1.0, policy.clip / length)
        descend(weights, step, factor, meta.lengths, scratch.unit_rates, scratch.zeros[:0])
    if not np.isfinite(norm(weights, scratch.sums)):
        copy(meta.theta, weights)
