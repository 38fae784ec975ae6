"""The inner loop: a few clipped gradient steps on a context's support set.

    φ_j ← φ_j − α_kj · β_j · ∇_j · min(1, clip/‖∇‖)      inner step k, tensor j

The norm runs over the tensors that move, those with α_kj ≠ 0. β is a factor for each parameter,
where an initialization has them.

Rule: a result that is not finite is a value (False), never an exception.

References:
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", 2017. Antoniou, Edwards, Storkey,
    "How to train your MAML" (rates for each layer and step), 2018. Li, Zhou, Chen, Li,
    "Meta-SGD" (rates for each parameter), 2017. Raghu, Raghu, Bengio, Vinyals, "Rapid Learning
    or Feature Reuse?" (ANIL: only the last layer moves), 2020.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats, Ints
from streammaml.learner.kernels.compiler import jit
from streammaml.learner.kernels.network import ZERO, gradient
from streammaml.learner.kernels.vectors import norm
from streammaml.learner.state import Meta, Scratch


@jit
def descend(
    parameters: Float32s,
    step: Float32s,
    factor: float,
    lengths: Ints,
    rates: Float32s,
    parameter_rates: Float32s,
) -> None:
    """parameters −= factor · rate_j · step, tensor by tensor; rates [J], lengths [J].

    Times ``parameter_rates`` [P], unless they are [0].
    """
    offset = 0
    for tensor in range(lengths.shape[0]):
        size = lengths[tensor]
        rate = np.float32(factor * rates[tensor])
        p, g = parameters[offset : offset + size], step[offset : offset + size]
        if parameter_rates.shape[0] > 0:
            own = parameter_rates[offset : offset + size]
            for i in range(size):
                p[i] -= rate * (own[i] * g[i])
        else:
            for i in range(size):
                p[i] -= rate * g[i]
        offset += size


@jit
def lowest_layer(rates: Float32s) -> int:
    """Of those that move by ``rates`` [J]; two tensors are a layer."""
    tensor = 0
    while tensor < rates.shape[0] - 1 and rates[tensor] == ZERO:
        tensor += 1
    return tensor // 2


@jit
def hold(step: Float32s, lengths: Ints, rates: Float32s) -> None:
    """Let the gradient [P] of every tensor that stays be 0, whatever it is."""
    offset = 0
    for tensor in range(lengths.shape[0]):
        size = lengths[tensor]
        if rates[tensor] == ZERO:
            g = step[offset : offset + size]
            for i in range(size):
                g[i] = ZERO
        offset += size


@jit
def adapt(
    fast: Float32s,
    meta: Meta,
    rate_factor: float,
    clip: float,
    y: Floats,
    known: NDArray[np.bool_],
    regression: bool,
    rows: int,
    scratch: Scratch,
) -> float:
    """Adapt ``fast`` [P] in place on the ``rows`` examples whose inputs stand in scratch.

    All rates are multiplied by ``rate_factor``; ``y`` [rows] class slots or scaled targets.
    Returns the norm of the first gradient, NaN if any step or the result is not finite.
    """
    first = 0.0
    step = scratch.gradient
    for k in range(meta.rates.shape[0]):
        rates = meta.rates[k]
        lowest = lowest_layer(rates)
        gradient(fast, meta, y, known, regression, rows, scratch, step, lowest)
        hold(step, meta.lengths, rates)
        length = norm(step, scratch.sums)
        if not np.isfinite(length):
            return np.nan
        if k == 0:
            first = length
        factor = rate_factor * min(1.0, clip / length) if length > 0.0 else 0.0
        descend(fast, step, factor, meta.lengths, rates, meta.parameter_rates)
    return first if np.isfinite(norm(fast, scratch.sums)) else np.nan
