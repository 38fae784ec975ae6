"""Scaled inputs: each number twice, against the stream and against its own context.

Rule: the scalers know only the past; an event enters them after it was predicted and learned.
Formulas: z = clip((x − m)/√v, ±4); a context's m and v are shrunk to the stream's by 20
pseudo-events. Welford's updates keep them exact for numbers far from zero.

References:
    Welford, "Note on a method for calculating corrected sums of squares and products", 1962.
"""

from __future__ import annotations

import numpy as np

from streammaml.events import Float32s, Floats
from streammaml.learner.kernels.compiler import jit
from streammaml.learner.state import ContextState, StreamState

PSEUDO_EVENTS = 20.0
Z_LIMIT = np.float32(4.0)
CONSTANT = 1e-10
FULL_REFRESH = 200


@jit
def context_scale(
    contexts: ContextState, stream: StreamState, row: int, mean: Floats, inverse: Floats
) -> None:
    """Write the context's shrunk mean [D] and 1/√variance [D]; 0 where the stream is constant."""
    for d in range(mean.shape[0]):
        n = contexts.x_count[row, d]
        m, v = stream.x_shift[d], stream.x_variance[d]
        own = contexts.x_mean[row, d]
        centre = (PSEUDO_EVENTS * m + n * own) / (PSEUDO_EVENTS + n)
        spread = PSEUDO_EVENTS * (v + (m - centre) ** 2)
        spread += contexts.x_m2[row, d] + n * (own - centre) ** 2
        variance = max(spread / (PSEUDO_EVENTS + n), 0.01 * v + 1e-9)
        mean[d] = centre
        inverse[d] = 0.0 if stream.x_inverse[d] == 0.0 else 1.0 / np.sqrt(variance)


@jit
def inputs(x: Float32s, stream: StreamState, mean: Floats, inverse: Floats, u: Float32s) -> None:
    """Write u [2D] = [z of the stream, z of the context]; a missing number is 0."""
    count = x.shape[0]
    for d in range(count):
        if np.isnan(x[d]):
            u[d] = np.float32(0.0)
            u[count + d] = np.float32(0.0)
        else:
            z = np.float32((x[d] - stream.x_shift[d]) * stream.x_inverse[d])
            u[d] = min(max(z, -Z_LIMIT), Z_LIMIT)
            z = np.float32((x[d] - mean[d]) * inverse[d])
            u[count + d] = min(max(z, -Z_LIMIT), Z_LIMIT)


@jit
def learn_x(contexts: ContextState, stream: StreamState, row: int, x: Float32s) -> None:
    """Add one event's numbers to the running statistics; missing ones are not counted."""
    for d in range(x.shape[0]):
        if np.isnan(x[d]):
            continue
        value = np.float64(x[d])
        stream.x_count[d] += 1.0
        delta = value - stream.x_mean[d]
        stream.x_mean[d] += delta / stream.x_count[d]
        stream.x_m2[d] += delta * (value - stream.x_mean[d])
        contexts.x_count[row, d] += 1.0
        delta = value - contexts.x_mean[row, d]
        contexts.x_mean[row, d] += delta / contexts.x_count[row, d]
        contexts.x_m2[row, d] += delta * (value - contexts.x_mean[row, d])


@jit
def refresh_x(stream: StreamState, labels: int) -> None:
    """Serve the stream's statistics anew: at each of the first 200 labels, then every 10th."""
    if labels > FULL_REFRESH and labels % 10 != 0:
        return
    for d in range(stream.x_count.shape[0]):
        n = stream.x_count[d]
        if n == 0.0:
            continue
        variance = stream.x_m2[d] / n
        constant = variance <= CONSTANT
        stream.x_shift[d] = stream.x_mean[d]
        stream.x_variance[d] = 1.0 if constant else variance
        stream.x_inverse[d] = 0.0 if constant else 1.0 / np.sqrt(variance)


@jit
def learn_y(stream: StreamState, y: float, labels: int) -> None:
    """Add a value to the label's range and statistics; serve them at the first 200, then each 500.

    ``labels`` counts this one. Up to 5 labels the standard deviation served is 1 + |mean|.
    """
    stream.y_range[0] = min(stream.y_range[0], y)
    stream.y_range[1] = max(stream.y_range[1], y)
    delta = y - stream.y_moments[0]
    stream.y_moments[0] += delta / labels
    stream.y_moments[1] += delta * (y - stream.y_moments[0])
    if labels <= FULL_REFRESH or labels % 500 == 0:
        stream.y_scale[0] = stream.y_moments[0]
        if labels <= 5:
            stream.y_scale[1] = 1.0 + abs(stream.y_moments[0])
        else:
            stream.y_scale[1] = np.sqrt(max(stream.y_moments[1] / labels, 1e-6))
