"""A partition's arrays behind one handle.

A partition has sixty arrays. Unpacking one from Python costs .1 us, and a compiled call copies all
that it is handed: more than the event itself. So they are unpacked once, into a :class:`Bundle`,
which is one pointer, and again only when they are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

from numba import types
from numba.core.types import Type
from numba.experimental import structref

from streammaml.events import Packed
from streammaml.learner.kernels.compiler import SETTINGS, jit
from streammaml.learner.state import ContextState, Meta, Outputs, Policy, Scratch, StreamState

FIELDS = ["contexts", "stream", "meta", "policy", "scratch", "out"]


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
    """Shares the memory of its parts; ``out`` is set anew for each batch."""

    contexts: ContextState
    stream: StreamState
    meta: Meta
    policy: Policy
    scratch: Scratch
    out: Outputs


if not SETTINGS["DISABLE_JIT"]:
    structref.define_proxy(Bundle, BundleType, FIELDS)  # type: ignore[no-untyped-call]  # as above


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
def _compiled(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    out: Outputs,
) -> Bundle:
    return Bundle(contexts, stream, meta, policy, scratch, out)


def bundle(
    contexts: ContextState,
    stream: StreamState,
    meta: Meta,
    policy: Policy,
    scratch: Scratch,
    packed: Packed,
) -> Bundle:
    """Unpack a partition; ``packed`` may have room for no event."""
    parts = (contexts, stream, meta, policy, scratch, unpack(packed))
    if SETTINGS["DISABLE_JIT"]:
        return Bundle(**dict(zip(FIELDS, parts, strict=True)))
    return _compiled(*parts)
