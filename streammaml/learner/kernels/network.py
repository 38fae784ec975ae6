"""A ReLU network on flat parameters: forward, losses, and gradient, by hand.

Rule: parameters are one contiguous vector [P] (weight 0, bias 0, weight 1, …), so that a context's
weights are one row. ``sizes`` [L+1]; activations [L+1, S, W] with W the widest layer; the inputs
stand in ``activations[0]``. Every inner loop runs over contiguous rows, four terms at a time: that
is what LLVM turns into vector code without fastmath.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats
from streammaml.learner.kernels.compiler import jit
from streammaml.learner.state import Scratch

ZERO = np.float32(0.0)
ONE = np.float32(1.0)


@jit
def affine(
    x: Float32s, weight: Float32s, bias: Float32s, out: Float32s, rows: int, relu: bool
) -> None:
    """out [rows, n] = x [rows, m] @ weight [m, n] + bias [n], through a ReLU if asked."""
    m, n = weight.shape
    whole = m - m % 4
    for s in range(rows):
        o = out[s, :n]
        for j in range(n):
            o[j] = bias[j]
        for k in range(0, whole, 4):
            a0, a1, a2, a3 = x[s, k], x[s, k + 1], x[s, k + 2], x[s, k + 3]
            w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
            for j in range(n):
                o[j] += (a0 * w0[j] + a1 * w1[j]) + (a2 * w2[j] + a3 * w3[j])
        for k in range(whole, m):
            a, w = x[s, k], weight[k]
            for j in range(n):
                o[j] += a * w[j]
        if relu:
            for j in range(n):
                if o[j] < ZERO:
                    o[j] = ZERO


@jit
def forward(
    parameters: Float32s, sizes: NDArray[np.int64], activations: Float32s, rows: int
) -> None:
    """Fill activations[1:] for the first ``rows`` inputs; the last one holds the outputs [., K]."""
    offset = 0
    layers = sizes.shape[0] - 1
    for layer in range(layers):
        m, n = sizes[layer], sizes[layer + 1]
        weight = parameters[offset : offset + m * n].reshape(m, n)
        bias = parameters[offset + m * n : offset + m * n + n]
        affine(activations[layer], weight, bias, activations[layer + 1], rows, layer < layers - 1)
        offset += m * n + n


@jit
def softmax(logits: Float32s, known: NDArray[np.bool_], out: Float32s) -> bool:
    """Write probabilities [K], 0 for classes not yet known; False if a logit is not finite."""
    top = np.float32(-np.inf)
    for k in range(known.shape[0]):
        if known[k]:
            if not np.isfinite(logits[k]):
                return False
            top = max(top, logits[k])
    total = ZERO
    for k in range(known.shape[0]):
        out[k] = np.exp(logits[k] - top) if known[k] else ZERO
        total += out[k]
    if total > ZERO:
        for k in range(known.shape[0]):
            out[k] /= total
    return True


@jit
def output_losses(
    outputs: Float32s,
    y: Floats,
    known: NDArray[np.bool_],
    regression: bool,
    rows: int,
    delta: Float32s,
) -> float:
    """Mean loss over ``rows`` outputs; writes its gradient by output into delta [rows, K].

    Cross-entropy over the known classes, or Huber(1) on the scaled target. NaN if not finite.
    """
    total = 0.0
    share = ONE / np.float32(rows)
    for s in range(rows):
        if regression:
            error = outputs[s, 0] - np.float32(y[s])
            size = abs(error)
            total += 0.5 * size * size if size <= ONE else size - 0.5
            delta[s, 0] = min(max(error, -ONE), ONE) * share
        else:
            if not softmax(outputs[s], known, delta[s]):
                return np.nan
            target = int(y[s])
            total -= np.log(max(delta[s, target], np.float32(1e-30)))
            for k in range(known.shape[0]):
                delta[s, k] *= share
            delta[s, target] -= share
    return total / rows


@jit
def weight_gradient(x: Float32s, delta: Float32s, rows: int, out: Float32s) -> None:
    """out [m, n] = xᵀ [m, rows] @ delta [rows, n]."""
    m, n = out.shape
    whole = rows - rows % 4
    for k in range(m):
        g = out[k]
        for j in range(n):
            g[j] = ZERO
        for s in range(0, whole, 4):
            a0, a1, a2, a3 = x[s, k], x[s + 1, k], x[s + 2, k], x[s + 3, k]
            d0, d1, d2, d3 = delta[s, :n], delta[s + 1, :n], delta[s + 2, :n], delta[s + 3, :n]
            for j in range(n):
                g[j] += (a0 * d0[j] + a1 * d1[j]) + (a2 * d2[j] + a3 * d3[j])
        for s in range(whole, rows):
            a, d = x[s, k], delta[s, :n]
            for j in range(n):
                g[j] += a * d[j]


@jit
def input_gradient(
    x: Float32s, weight: Float32s, delta: Float32s, rows: int, turned: Float32s, out: Float32s
) -> None:
    """out [rows, m] = delta [rows, n] @ weightᵀ, where the ReLU that made x [rows, m] was open."""
    m, n = weight.shape
    across = turned[: n * m].reshape(n, m)
    for k in range(m):
        w = weight[k]
        for j in range(n):
            across[j, k] = w[j]
    whole = n - n % 4
    for s in range(rows):
        o = out[s, :m]
        for k in range(m):
            o[k] = ZERO
        for j in range(0, whole, 4):
            d0, d1, d2, d3 = delta[s, j], delta[s, j + 1], delta[s, j + 2], delta[s, j + 3]
            w0, w1, w2, w3 = across[j], across[j + 1], across[j + 2], across[j + 3]
            for k in range(m):
                o[k] += (d0 * w0[k] + d1 * w1[k]) + (d2 * w2[k] + d3 * w3[k])
        for j in range(whole, n):
            d, w = delta[s, j], across[j]
            for k in range(m):
                o[k] += d * w[k]
        open_ = x[s, :m]
        for k in range(m):
            if open_[k] <= ZERO:
                o[k] = ZERO


@jit
def gradient(
    parameters: Float32s,
    sizes: NDArray[np.int64],
    y: Floats,
    known: NDArray[np.bool_],
    regression: bool,
    rows: int,
    scratch: Scratch,
    out: Float32s,
) -> float:
    """Write the gradient [P] of the mean loss on the inputs in scratch; return that loss."""
    layers = sizes.shape[0] - 1
    activations, deltas = scratch.activations, scratch.deltas
    forward(parameters, sizes, activations, rows)
    loss = output_losses(activations[layers], y, known, regression, rows, deltas[layers % 2])
    end = parameters.shape[0]
    for layer in range(layers - 1, -1, -1):
        m, n = sizes[layer], sizes[layer + 1]
        delta = deltas[(layer + 1) % 2]
        start = end - (m * n + n)
        weight_gradient(activations[layer], delta, rows, out[start : start + m * n].reshape(m, n))
        bias = out[end - n : end]
        for j in range(n):
            bias[j] = ZERO
        for s in range(rows):
            d = delta[s, :n]
            for j in range(n):
                bias[j] += d[j]
        if layer > 0:
            weight = parameters[start : start + m * n].reshape(m, n)
            input_gradient(
                activations[layer], weight, delta, rows, scratch.turned, deltas[layer % 2]
            )
        end = start
    return loss
