"""Products of small matrices, several rows and 16 or 64 columns at a time.

Rule: sums run over k in order, multiply then add, nothing fused and nothing reordered, so the bits
are those of the plain triple loop whatever the processor's vectors are.

LLVM vectorizes the plain loop, but reloads and checks for aliasing at every k. Here the sums stay
in registers over the whole of k: several times as fast as the loop at these sizes. A BLAS tuned
for its processor is as fast, but its bits are that processor's own. What stays in registers
cannot be said in Python, so :func:`_tile` says it in LLVM's own terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # ships no types
from numba import types
from numba.core import cgutils
from numba.core.types import Type
from numba.extending import intrinsic

from streammaml.events import Float32s
from streammaml.learner.kernels.compiler import SETTINGS, jit

LANES = 16
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
FLOAT_BYTES = 4

Tile = Callable[[Float32s, Float32s, Float32s, Float32s, int, int, int, np.float32], None]


class Addresses:
    """Addresses in an array argument, whatever its strides."""

    def __init__(self, context: Any, builder: Any, kind: Type, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._base = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self._strides = [builder.extract_value(array.strides, i) for i in range(kind.ndim)]  # type: ignore[attr-defined]  # of an array's type

    def at(self, place: Sequence[Any], kind: Any) -> Any:
        builder = self._builder
        offset = ir.Constant(ir.IntType(64), 0)
        for index, stride in zip(place, self._strides, strict=True):
            offset = builder.add(offset, builder.mul(index, stride))
        return builder.bitcast(builder.gep(self._base, [offset]), kind.as_pointer())


def _tile(rows: int, vectors: int) -> Tile:
    """Make ``tile(a, w, bias, o, row, column, m, floor)``: ``product`` for ``rows`` rows from
    ``row`` on and ``vectors`` × 16 columns from ``column`` on.

    Columns of w, bias and o lie side by side in memory; a may have any strides.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        a, w, bias, o = (
            Addresses(context, builder, signature.args[i], arguments[i]) for i in range(4)
        )
        first, column, m, floor = arguments[4:]
        own = [builder.add(first, ir.Constant(first.type, r)) for r in range(rows)]
        columns = [builder.add(column, ir.Constant(column.type, LANES * v)) for v in range(vectors)]
        room: Callable[[Any, Any], Any] = cgutils.alloca_once
        sums = [[room(builder, VECTOR) for _ in columns] for _ in own]

        def load(array: Addresses, *place: Any) -> Any:
            return builder.load(array.at(place, VECTOR), align=FLOAT_BYTES)

        start = [load(bias, c) for c in columns]
        for r in range(rows):
            for v in range(vectors):
                builder.store(start[v], sums[r][v])
        with cgutils.for_range(builder, m) as loop:
            right = [load(w, loop.index, c) for c in columns]
            for r in range(rows):
                left = _splat(builder, builder.load(a.at((own[r], loop.index), FLOAT)))
                for v in range(vectors):
                    product = builder.fmul(left, right[v])
                    builder.store(builder.fadd(builder.load(sums[r][v]), product), sums[r][v])
        least = _splat(builder, floor)
        for r in range(rows):
            for v in range(vectors):
                total = builder.load(sums[r][v])
                total = builder.select(builder.fcmp_ordered("<", total, least), least, total)
                builder.store(total, o.at((own[r], columns[v]), VECTOR), align=FLOAT_BYTES)
        return context.get_dummy_value()

    def tile(
        typing: Any,
        a: Type,
        w: Type,
        bias: Type,
        o: Type,
        row: Type,
        column: Type,
        m: Type,
        f: Type,
    ) -> tuple[Any, Any]:
        whole = types.intp
        return types.void(a, w, bias, o, whole, whole, whole, types.float32), generate

    def plain(
        a: Float32s,
        w: Float32s,
        bias: Float32s,
        o: Float32s,
        row: int,
        column: int,
        m: int,
        floor: np.float32,
    ) -> None:
        own, columns = slice(row, row + rows), slice(column, column + vectors * LANES)
        o[own, columns] = bias[columns]
        for k in range(m):
            o[own, columns] += a[own, k : k + 1] * w[k : k + 1, columns]
        o[own, columns] = np.maximum(o[own, columns], floor)

    return plain if SETTINGS["DISABLE_JIT"] else cast(Tile, intrinsic(tile))


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, undefined, mask)


tile_4x64 = _tile(4, 4)
tile_1x64 = _tile(1, 4)
tile_8x16 = _tile(8, 1)
tile_1x16 = _tile(1, 1)


@jit
def product(
    a: Float32s,
    w: Float32s,
    bias: Float32s,
    o: Float32s,
    rows: int,
    m: int,
    n: int,
    floor: np.float32,
    pad: Float32s,
) -> None:
    """o [rows, n] = max(bias [n] + a [rows, m] @ w [m, n], floor); ``a`` may be a transposed view.

    NaN is above any floor. Below 16 columns through ``pad`` [at least m + rows + 1, 16].
    """
    if n < LANES:
        narrow(a, w, bias, o, rows, m, n, floor, pad)
        return
    column = 0
    while column + 64 <= n:
        for row in range(0, rows - 3, 4):
            tile_4x64(a, w, bias, o, row, column, m, floor)
        if rows < 4:
            for row in range(rows):
                tile_1x64(a, w, bias, o, row, column, m, floor)
        elif rows % 4 != 0:  # some rows again: cheaper than one by one
            tile_4x64(a, w, bias, o, rows - 4, column, m, floor)
        column += 64
    while column < n:
        strip(a, w, bias, o, rows, min(column, n - LANES), m, floor)
        column += LANES


@jit
def strip(
    a: Float32s,
    w: Float32s,
    bias: Float32s,
    o: Float32s,
    rows: int,
    column: int,
    m: int,
    floor: np.float32,
) -> None:
    """16 columns of ``product``."""
    for row in range(0, rows - 7, 8):
        tile_8x16(a, w, bias, o, row, column, m, floor)
    if rows < 8:
        for row in range(rows):
            tile_1x16(a, w, bias, o, row, column, m, floor)
    elif rows % 8 != 0:
        tile_8x16(a, w, bias, o, rows - 8, column, m, floor)


@jit
def narrow(
    a: Float32s,
    w: Float32s,
    bias: Float32s,
    o: Float32s,
    rows: int,
    m: int,
    n: int,
    floor: np.float32,
    pad: Float32s,
) -> None:
    """``product`` of less than 16 columns."""
    if rows < 4:
        for s in range(rows):
            for j in range(n):
                total = bias[j]
                for k in range(m):
                    total += a[s, k] * w[k, j]
                o[s, j] = floor if total < floor else total
        return
    start, wide, sums = pad[0], pad[1 : m + 1], pad[m + 1 : m + 1 + rows]
    # Whatever stands in the other columns stays there: a column is its own sum.
    for j in range(n):
        start[j] = bias[j]
    for k in range(m):
        for j in range(n):
            wide[k, j] = w[k, j]
    strip(a, wide, start, sums, rows, 0, m, floor)
    for s in range(rows):
        for j in range(n):
            o[s, j] = sums[s, j]
