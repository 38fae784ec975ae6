"""The way into the kernels: a partition's arrays behind one handle.

Unpacking an array argument costs .1 us, and a partition has sixty: more than the event itself at
batch size 1. So the arrays are unpacked once, into a :class:`Bundle`, and again only when they are
replaced. What the kernel decides is written into four arrays for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from numba import types
from numba.core.types import Type
from numba.experimental import structref

from streammaml.events import Float32s, Floats, Packed
from streammaml.learner.kernels import step
from streammaml.learner.kernels.compiler import jit
from streammaml.learner.state import (
    ContextState,
    Ints,
    Meta,
    Outputs,
    Policy,
    Scratch,
    StreamState,
)

FIELDS = ["contexts", "stream", "meta", "policy", "scratch"]


@structref.register
class BundleType(types.StructRef):
    """Numba's side of :class:`Bundle`."""

    def preprocess_fields(self, fields: Sequence[tuple[str, Type]]) -> tuple[tuple[str, Type], ...]:
        general = types.unliteral  # a version number is an int, not this int
        return tuple(
            (name, general(kind))  # type: ignore[no-untyped-call]  # numba types half of itself
            for name, kind in fields
        )


class Bundle(structref.StructRefProxy):
    """Contexts, stream, meta, policy and scratch of one partition; shares their memory."""

    contexts: ContextState
    stream: StreamState
    meta: Meta
    policy: Policy
    scratch: Scratch


structref.define_proxy(Bundle, BundleType, FIELDS)  # type: ignore[no-untyped-call]  # as above


@jit
def bundle(
    contexts: ContextState, stream: StreamState, meta: Meta, policy: Policy, scratch: Scratch
) -> Bundle:
    return Bundle(contexts, stream, meta, policy, scratch)  # type: ignore[no-untyped-call]  # as above


@jit
def unpack(packed: Packed) -> Outputs:
    """Name the rows of ``packed``, as ``events.Decisions`` does."""
    p, n, c, k = packed.probabilities, packed.numbers, packed.counts, packed.codes
    return Outputs(
        p[0],
        p[1],
        n[0],
        n[1],
        n[2],
        n[3],
        n[4],
        n[5],
        n[6],
        n[7],
        c[0],
        c[1],
        k[0],
        k[1],
        k[2],
        k[3],
    )


@jit
def play(
    partition: Bundle, rows: Ints, x: Float32s, y: Floats, first: int, last: int, packed: Packed
) -> None:
    """``step.play`` for events first … last−1."""
    step.play(
        partition.contexts,
        partition.stream,
        partition.meta,
        partition.policy,
        partition.scratch,
        rows,
        x,
        y,
        first,
        last,
        unpack(packed),
    )


@jit
def play_to_signal(
    partition: Bundle, rows: Ints, x: Float32s, y: Floats, i: int, packed: Packed
) -> None:
    """``step.play_to_signal`` for event ``i``."""
    step.play_to_signal(
        partition.contexts,
        partition.stream,
        partition.meta,
        partition.policy,
        partition.scratch,
        rows,
        x,
        y,
        i,
        unpack(packed),
    )


@jit
def play_from_level(
    partition: Bundle, rows: Ints, x: Float32s, y: Floats, i: int, level: int, packed: Packed
) -> None:
    """``step.play_from_level`` for event ``i``."""
    step.play_from_level(
        partition.contexts,
        partition.stream,
        partition.meta,
        partition.policy,
        partition.scratch,
        rows,
        x,
        y,
        i,
        level,
        unpack(packed),
    )
