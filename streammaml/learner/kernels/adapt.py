"""The inner loop: a few clipped gradient steps on a context's support set.

    φ_j ← φ_j − α_kj · ∇_j · min(1, clip/‖∇‖)      inner step k, tensor j, norm over all tensors

Rule: a result that is not finite is a value (False), never an exception.

References:
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", 2017. Antoniou, Edwards, Storkey,
    "How to train your MAML" (rates for each layer and step), 2018.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats
from streammaml.learner.kernels.compiler import jit
from streammaml.learner.kernels.network import gradient
from streammaml.learner.kernels.vectors import norm
from streammaml.learner.state import Scratch


@jit
def descend(
    parameters: Float32s,
    step: Float32s,
    factor: float,
    sizes: NDArray[np.int64],
    rates: Float32s,
) -> None:
    """parameters −= factor · rate_j · step, tensor by tensor; rates [2L]."""
    offset = 0
    for tensor in range(2 * (sizes.shape[0] - 1)):
        layer = tensor // 2
        size = sizes[layer] * sizes[layer + 1] if tensor % 2 == 0 else sizes[layer + 1]
        rate = np.float32(factor * rates[tensor])
        p, g = parameters[offset : offset + size], step[offset : offset + size]
        for i in range(size):
            p[i] -= rate * g[i]
        offset += size


@jit
def adapt(
    fast: Float32s,
    sizes: NDArray[np.int64],
    rates: Float32s,
    rate_factor: float,
    clip: float,
    y: Floats,
    known: NDArray[np.bool_],
    regression: bool,
    rows: int,
    scratch: Scratch,
) -> float:
    """Adapt ``fast`` [P] in place on the ``rows`` examples whose inputs stand in scratch.

    ``rates`` [steps, 2L], all multiplied by ``rate_factor``; ``y`` [rows] class slots or scaled
    targets. Returns the norm of the first gradient, NaN if any step or the result is not finite.
    """
    first = 0.0
    step = scratch.gradient
    for k in range(rates.shape[0]):
        gradient(fast, sizes, y, known, regression, rows, scratch, step)
        length = norm(step, scratch.sums)
        if not np.isfinite(length):
            return np.nan
        if k == 0:
            first = length
        factor = rate_factor * min(1.0, clip / length) if length > 0.0 else 0.0
        descend(fast, step, factor, sizes, rates[k])
    return first if np.isfinite(norm(fast, scratch.sums)) else np.nan
