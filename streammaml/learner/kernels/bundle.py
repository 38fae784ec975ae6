"""A partition's arrays behind one handle.

A partition has fifty arrays. Unpacking one from Python costs .1 us: together more than the event
itself. So they are unpacked once, into a :class:`Bundle`, which is one pointer, and again only
when they are replaced. Compiled code takes them out once a call, as :class:`Parts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import NamedTuple

from numba import types
from numba.core.types import Type
from numba.experimental import structref

from streammaml.events import Packed
from streammaml.learner.kernels.compiler import SETTINGS, entry, inline
from streammaml.learner.state import (
    Captures,
    ContextState,
    Meta,
    Outputs,
    Policy,
    Scratch,
    StreamState,
)

FIELDS = ["contexts", "stream", "meta", "policy", "scratch", "captures"]


@structref.register
class BundleType(types.StructRef):
    """Numba's side of :class:`Bundle`."""

    def preprocess_fields(self, fields: Sequence[tuple[str, Type]]) -> tuple[tuple[str, Type], ...]:
        general = types.unliteral  # a version number is an int, not this int
        return tuple(
            (name, general(kind))  # type: ignore[no-untyped-call]  # numba types half of itself
            for name, kind in fields
        )


Base: type = SimpleNamespace if SETTINGS["DISABLE_JIT"] else structref.StructRefProxy


class Bundle(Base):  # type: ignore[misc]  # which base, NUMBA_DISABLE_JIT says
    """Shares the memory of its parts."""

    contexts: ContextState
    stream: StreamState
    meta: Meta
    policy: Policy
    scratch: Scratch
    captures: Captures


if not SETTINGS["DISABLE_JIT"]:
    structref.define_proxy(Bundle, BundleType, FIELDS)  # type: ignore[no-untyped-call]  # as above


class Parts(NamedTuple):
    """A bundle taken apart, and where the decisions go."""

    contexts: ContextState
    stream: StreamState
    meta: Meta
    policy: Policy
    scratch: Scratch
    captures: Captures
    out: Outputs


@inline
def parts_of(bundle: Bundle, packed: Packed) -> Parts:
    return Parts(
        bundle.contexts,
        bundle.stream,
        bundle.meta,
        bundle.policy,
        bundle.scratch,
        bundle.captures,
        unpack(packed),
    )


@inline
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
        n[8],
        c[0],
        c[1],
        k[0],
        k[1],
        k[2],
        k[3],
    )


@entry
def _compiled(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    captures: Captures,
) -> Bundle:
    return Bundle(contexts, stream, meta, policy, scratch, captures)


def bundle(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    captures: Captures,
) -> Bundle:
    """Unpack a partition."""
    parts = (contexts, stream, meta, policy, scratch, captures)
    if SETTINGS["DISABLE_JIT"]:
        return Bundle(**dict(zip(FIELDS, parts, strict=True)))
    return _compiled(*parts)
