"""How an initialization would have done: the latest segment of contexts played again from θ.

θ is charged with the first 4 examples, what a warm-up on these gives with the next 4, what a
warm-up on these 8 gives with the next 8, and so on: all examples count, and no loss is of an
example that was fitted. Rule: it writes into scratch and its own result only; which
initialization it is, the bundle says.
"""

from __future__ import annotations

import numpy as np

from streammaml.events import Floats, Packed
from streammaml.learner.kernels import scaler
from streammaml.learner.kernels.bundle import Bundle, Parts, parts_of
from streammaml.learner.kernels.compiler import entry, jit
from streammaml.learner.kernels.step import fit, judge, load_support
from streammaml.learner.kernels.vectors import copy
from streammaml.learner.state import Ints

FIRST = 4


@jit
def loss_of_segment(p: Parts, row: int) -> float:
    """Mean loss over the examples in the support set; NaN where something is not finite."""
    contexts, scratch = p.contexts, p.scratch
    scaler.context_scale(contexts, p.stream, row, scratch.mean, scratch.inverse)
    size = min(contexts.segment[row], scratch.y.shape[0])
    copy(p.meta.theta, scratch.candidate)
    total, fitted, length = 0.0, 0, 0.0
    while fitted < size:
        if fitted > 0:
            length = fit(p, row, size, size - fitted, False)
        rows = min(max(fitted, FIRST), size - fitted)
        load_support(p, row, size - fitted)
        total += rows * judge(p, scratch.candidate, rows)
        if not np.isfinite(length):
            return np.nan
        fitted += rows
    return float(total / size)


@entry
def losses_of_segments(b: Bundle, packed: Packed, rows: Ints, losses: Floats) -> None:
    """Write that loss [n] of every one of ``rows`` [n]; each has a label in its segment."""
    p = parts_of(b, packed)
    for i in range(rows.shape[0]):
        losses[i] = loss_of_segment(p, rows[i])
