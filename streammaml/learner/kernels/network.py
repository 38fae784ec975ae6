"""A ReLU network on flat parameters: forward, losses, and gradient, by hand.

Rule: parameters are one contiguous vector [P] (weight 0, bias 0, weight 1, …), so that a context's
weights are one row. ``sizes`` [L+1]; activations [L+1, S, W] with W the widest layer; the inputs
stand in ``activations[0]``. Every product is sums of rows, eight at a time over contiguous memory:
that is what LLVM turns into vector code without fastmath.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats
from streammaml.learner.kernels.compiler import inline, jit
from streammaml.learner.state import Scratch

ZERO = np.float32(0.0)
ONE = np.float32(1.0)


@inline
def add_8(
    o: Float32s,
    w: Float32s,
    k: int,
    a0: float,
    a1: float,
    a2: float,
    a3: float,
    a4: float,
    a5: float,
    a6: float,
    a7: float,
) -> None:
    """o [n] += Σ a_i · w[k+i]: the loop that all matrix products here spend their time in."""
    n = o.shape[0]
    w0, w1, w2, w3 = w[k, :n], w[k + 1, :n], w[k + 2, :n], w[k + 3, :n]
    w4, w5, w6, w7 = w[k + 4, :n], w[k + 5, :n], w[k + 6, :n], w[k + 7, :n]
    for j in range(n):
        o[j] += ((a0 * w0[j] + a1 * w1[j]) + (a2 * w2[j] + a3 * w3[j])) + (
            (a4 * w4[j] + a5 * w5[j]) + (a6 * w6[j] + a7 * w7[j])
        )


@inline
def add_4(o: Float32s, w: Float32s, k: int, a0: float, a1: float, a2: float, a3: float) -> None:
    n = o.shape[0]
    w0, w1, w2, w3 = w[k, :n], w[k + 1, :n], w[k + 2, :n], w[k + 3, :n]
    for j in range(n):
        o[j] += (a0 * w0[j] + a1 * w1[j]) + (a2 * w2[j] + a3 * w3[j])


@inline
def add_1(o: Float32s, w: Float32s, k: int, a: float) -> None:
    n = o.shape[0]
    row = w[k, :n]
    for j in range(n):
        o[j] += a * row[j]


@inline
def add_product(o: Float32s, a: Float32s, w: Float32s, m: int) -> None:
    """o [n] += a[:m] @ w[:m, :n]."""
    k = 0
    while k + 8 <= m:
        add_8(o, w, k, a[k], a[k + 1], a[k + 2], a[k + 3], a[k + 4], a[k + 5], a[k + 6], a[k + 7])
        k += 8
    if k + 4 <= m:
        add_4(o, w, k, a[k], a[k + 1], a[k + 2], a[k + 3])
        k += 4
    while k < m:
        add_1(o, w, k, a[k])
        k += 1


@jit
def affine(
    x: Float32s, weight: Float32s, bias: Float32s, out: Float32s, rows: int, relu: bool
) -> None:
    """out [rows, n] = x [rows, m] @ weight [m, n] + bias [n], through a ReLU if asked."""
    m, n = weight.shape
    for s in range(rows):
        o = out[s, :n]
        for j in range(n):
            o[j] = bias[j]
        add_product(o, x[s], weight, m)
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
def weight_gradient(
    x: Float32s, delta: Float32s, rows: int, turned: Float32s, out: Float32s
) -> None:
    """out [m, n] = xᵀ [m, rows] @ delta [rows, n]; ``turned`` is room for xᵀ."""
    m, n = out.shape
    across = turned[: m * rows].reshape(m, rows)
    for s in range(rows):
        row = x[s, :m]
        for k in range(m):
            across[k, s] = row[k]
    for k in range(m):
        o = out[k]
        for j in range(n):
            o[j] = ZERO
        add_product(o, across[k], delta, rows)


@jit
def input_gradient(
    x: Float32s, weight: Float32s, delta: Float32s, rows: int, turned: Float32s, out: Float32s
) -> None:
    """out [rows, m] = delta [rows, n] @ weightᵀ, where the ReLU that made x [rows, m] was open.

    ``turned`` is room for weightᵀ.
    """
    m, n = weight.shape
    across = turned[: n * m].reshape(n, m)
    for k in range(m):
        w = weight[k]
        for j in range(n):
            across[j, k] = w[j]
    for s in range(rows):
        o = out[s, :m]
        for k in range(m):
            o[k] = ZERO
        add_product(o, delta[s], across, n)
        made = x[s, :m]
        for k in range(m):
            if made[k] <= ZERO:
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
        product = out[start : start + m * n].reshape(m, n)
        weight_gradient(activations[layer], delta, rows, scratch.turned, product)
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
