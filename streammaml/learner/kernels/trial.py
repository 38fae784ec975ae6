"""How an initialization would have done: adapted on the past of contexts, judged on their newest.

Rule: it writes into scratch and its own result only; which initialization, the bundle says.
"""

from __future__ import annotations

import numpy as np

from streammaml.events import Floats, Packed
from streammaml.learner.kernels import scaler
from streammaml.learner.kernels.bundle import Bundle, Parts, parts_of
from streammaml.learner.kernels.compiler import entry, jit
from streammaml.learner.kernels.step import fit, judge, load_support
from streammaml.learner.state import Ints


@jit
def held_out_loss(p: Parts, row: int) -> float:
    """Mean loss on the newest quarter of a segment after a warm-up on the rest; NaN: diverged."""
    contexts, scratch = p.contexts, p.scratch
    scaler.context_scale(contexts, p.stream, row, scratch.mean, scratch.inverse)
    newest = min(contexts.segment[row], scratch.y.shape[0])
    judged = min(max(newest // 4, 3), 8)
    if not np.isfinite(fit(p, row, newest, judged, False)):
        return np.nan
    load_support(p, row, judged)
    return judge(p, scratch.candidate, judged)


@entry
def held_out_losses(b: Bundle, packed: Packed, rows: Ints, losses: Floats) -> None:
    """Write that loss [n] of every one of ``rows`` [n]; each has more than 3 labels."""
    p = parts_of(b, packed)
    for i in range(rows.shape[0]):
        losses[i] = held_out_loss(p, rows[i])
