"""Windows for the outer loop: copied where the kernel stands when a context is due for one.

Rule: a window has the scales that an adaptation at its last label uses, as they were before that
event entered them.
"""

from __future__ import annotations

from streammaml.events import QUERY, SUPPORT_LEAST
from streammaml.learner.kernels.bundle import Parts
from streammaml.learner.kernels.compiler import inline, jit
from streammaml.learner.kernels.vectors import copy

FIRST = SUPPORT_LEAST + QUERY
CAPTURED, DROPPED = 0, 1


@inline
def is_due(p: Parts, row: int) -> bool:
    """Whether the label just remembered completes a window."""
    every, beyond = p.policy.every, p.contexts.labels[row] - FIRST
    return every > 0 and beyond >= 0 and beyond % every == 0


@jit
def take(p: Parts, row: int, i: int) -> None:
    """Copy the newest examples of the context of event ``i``, whose scales stand in scratch."""
    contexts, stream, captures = p.contexts, p.stream, p.captures
    window = captures.counts[CAPTURED]
    if window == captures.y.shape[0]:
        captures.counts[DROPPED] += 1
        return
    captures.counts[CAPTURED] += 1
    labels, ring = contexts.labels[row], contexts.support_y.shape[1]
    size = min(labels, ring)
    for s in range(size):
        slot = (labels - size + s) % ring
        copy(contexts.support_x[row, slot], captures.x[window, s])
        captures.y[window, s] = contexts.support_y[row, slot]
        captures.offsets[window, s] = contexts.support_offsets[row, slot]
    scales = captures.scales[window]
    copy(stream.x_shift, scales[0])
    copy(p.scratch.mean, scales[1])
    copy(stream.x_inverse, scales[2])
    copy(p.scratch.inverse, scales[3])
    copy(stream.y_scale, captures.y_scale[window])
    used = 0
    for k in range(stream.known.shape[0]):
        if stream.known[k]:
            used = k + 1
    captures.marks[window, 0] = i
    captures.marks[window, 1] = labels
    captures.marks[window, 2] = used
