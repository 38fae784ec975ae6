"""A ReLU network on flat parameters: forward, losses, and gradient, by hand.

Rule: parameters are one contiguous vector [P] (weight 0, bias 0, weight 1, …), so that a context's
weights are one row. ``sizes`` [L+1]; activations [L+1, S, W] with W the widest layer; the inputs
stand in ``activations[0]``. Loops run over contiguous rows, taken out first: LLVM turns that into
vector code without fastmath.

A network of the user's own (``meta.callbacks``) has one layer here, of inputs and outputs; its
passes are called, and what a failed one should have written is NaN.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats
from streammaml.learner.kernels.callbacks import call_backward, call_forward
from streammaml.learner.kernels.compiler import inline, jit
from streammaml.learner.kernels.matmul import LANES, product
from streammaml.learner.kernels.vectors import transpose
from streammaml.learner.state import Meta, Scratch

ZERO = np.float32(0.0)
ONE = np.float32(1.0)
NO_FLOOR = np.float32(-np.inf)


@inline
def affine(
    x: Float32s,
    weight: Float32s,
    bias: Float32s,
    out: Float32s,
    rows: int,
    relu: bool,
    pad: Float32s,
) -> None:
    """out [rows, n] = x [rows, m] @ weight [m, n] + bias [n], through a ReLU if asked."""
    m, n = weight.shape
    product(x, weight, bias, out, rows, m, n, ZERO if relu else NO_FLOOR, pad)


@jit
def forward_outside(
    parameters: Float32s, meta: Meta, activations: Float32s, rows: int, keep: int
) -> None:
    """The outputs by a callback; ``keep`` 1: for a gradient."""
    inputs, outputs = activations[0], activations[1]
    stride = activations.shape[2]
    done = call_forward(meta.callbacks[0], parameters, inputs, outputs, stride, rows, keep)
    if done == 0:
        for s in range(rows):
            for k in range(meta.sizes[1]):
                outputs[s, k] = np.float32(np.nan)


@jit
def forward(
    parameters: Float32s, meta: Meta, activations: Float32s, rows: int, pad: Float32s
) -> None:
    """Fill activations[1:] for the first ``rows`` inputs; the last one holds the outputs [., K]."""
    if meta.callbacks[0] != 0:
        forward_outside(parameters, meta, activations, rows, 0)
        return
    sizes = meta.sizes
    offset = 0
    layers = sizes.shape[0] - 1
    for layer in range(layers):
        m, n = sizes[layer], sizes[layer + 1]
        weight = parameters[offset : offset + m * n].reshape(m, n)
        bias = parameters[offset + m * n : offset + m * n + n]
        relu = layer < layers - 1
        affine(activations[layer], weight, bias, activations[layer + 1], rows, relu, pad)
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
    x: Float32s, delta: Float32s, rows: int, scratch: Scratch, out: Float32s
) -> None:
    """out [m, n] = xᵀ [m, rows] @ delta [rows, n]."""
    m, n = out.shape
    if n >= LANES or m < LANES:
        product(x.T, delta, scratch.zeros, out, m, rows, n, NO_FLOOR, scratch.pad)
        return
    # The long side is the one to go along.
    across = scratch.turned[: n * m].reshape(n, m)
    product(delta.T, x, scratch.zeros, across, n, rows, m, NO_FLOOR, scratch.pad)
    transpose(across, out)


@jit
def input_gradient(
    x: Float32s, weight: Float32s, delta: Float32s, rows: int, scratch: Scratch, out: Float32s
) -> None:
    """out [rows, m] = delta [rows, n] @ weightᵀ, where the ReLU that made x [rows, m] was open."""
    m, n = weight.shape
    across = scratch.turned[: n * m].reshape(n, m)
    transpose(weight, across)
    product(delta, across, scratch.zeros, out, rows, n, m, NO_FLOOR, scratch.pad)
    for s in range(rows):
        o, made = out[s, :m], x[s, :m]
        for k in range(m):
            o[k] = ZERO if made[k] <= ZERO else o[k]


@jit
def gradient_outside(
    parameters: Float32s,
    meta: Meta,
    y: Floats,
    known: NDArray[np.bool_],
    regression: bool,
    rows: int,
    scratch: Scratch,
    out: Float32s,
) -> float:
    """``gradient`` by callbacks; NaN where the loss is."""
    activations, delta = scratch.activations, scratch.deltas[0]
    forward_outside(parameters, meta, activations, rows, 1)
    loss = output_losses(activations[1], y, known, regression, rows, delta)
    stride = activations.shape[2]
    if np.isnan(loss) or call_backward(meta.callbacks[1], delta, out, stride, rows) == 0:
        for i in range(out.shape[0]):
            out[i] = np.float32(np.nan)
        return np.nan
    return loss


@jit
def gradient(
    parameters: Float32s,
    meta: Meta,
    y: Floats,
    known: NDArray[np.bool_],
    regression: bool,
    rows: int,
    scratch: Scratch,
    out: Float32s,
    lowest: int = 0,
) -> float:
    """Write the gradient [P] of the mean loss on the inputs in scratch; return that loss.

    What belongs to layers below the ``lowest`` stays as it was, or is written all the same.
    """
    if meta.callbacks[0] != 0:
        return gradient_outside(parameters, meta, y, known, regression, rows, scratch, out)
    sizes = meta.sizes
    layers = sizes.shape[0] - 1
    activations, deltas = scratch.activations, scratch.deltas
    forward(parameters, meta, activations, rows, scratch.pad)
    loss = output_losses(activations[layers], y, known, regression, rows, deltas[layers % 2])
    end = parameters.shape[0]
    for layer in range(layers - 1, lowest - 1, -1):
        m, n = sizes[layer], sizes[layer + 1]
        delta = deltas[(layer + 1) % 2]
        start = end - (m * n + n)
        own = out[start : start + m * n].reshape(m, n)
        weight_gradient(activations[layer], delta, rows, scratch, own)
        bias = out[end - n : end].reshape(1, n)
        product(scratch.ones, delta, scratch.zeros, bias, 1, rows, n, NO_FLOOR, scratch.pad)
        if layer > lowest:
            weight = parameters[start : start + m * n].reshape(m, n)
            input_gradient(activations[layer], weight, delta, rows, scratch, deltas[layer % 2])
        end = start
    return loss
