"""Products of small matrices: o += a @ w, several rows and 16 or 64 columns at a time.

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

from llvmlite import ir  # type: ignore[import-untyped]  # ships no types
from numba import types
from numba.core import cgutils
from numba.core.types import Type
from numba.extending import intrinsic

from streammaml.events import Float32s
from streammaml.learner.kernels.compiler import SETTINGS, inline

LANES = 16
FLOAT = ir.FloatType()
VECTOR = ir.VectorType(FLOAT, LANES)
FLOAT_BYTES = 4

Tile = Callable[[Float32s, Float32s, Float32s, int, int, int], None]


class _Matrix:
    """Addresses in a matrix argument, whatever its strides."""

    def __init__(self, context: Any, builder: Any, kind: Type, value: Any) -> None:
        array = context.make_array(kind)(context, builder, value)
        self._builder = builder
        self._base = builder.bitcast(array.data, ir.IntType(8).as_pointer())
        self._strides = [builder.extract_value(array.strides, i) for i in range(2)]

    def at(self, row: Any, column: Any, kind: Any) -> Any:
        builder, (down, along) = self._builder, self._strides
        offset = builder.add(builder.mul(row, down), builder.mul(column, along))
        return builder.bitcast(builder.gep(self._base, [offset]), kind.as_pointer())


def _tile(rows: int, vectors: int) -> Tile:
    """Make ``tile(a, w, o, row, column, m)``, which adds a's rows[:m] @ w[:m] to ``rows`` rows of o
    from ``row`` on and ``vectors`` × 16 columns from ``column`` on.

    Columns of w and o lie side by side in memory; a may have any strides.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        a, w, o = (_Matrix(context, builder, signature.args[i], arguments[i]) for i in range(3))
        first, column, m = arguments[3:]
        own = [builder.add(first, ir.Constant(first.type, r)) for r in range(rows)]
        columns = [builder.add(column, ir.Constant(column.type, LANES * v)) for v in range(vectors)]
        places = [[o.at(row, c, VECTOR) for c in columns] for row in own]
        room: Callable[[Any, Any], Any] = cgutils.alloca_once
        sums = [[room(builder, VECTOR) for _ in columns] for _ in own]
        for r in range(rows):
            for v in range(vectors):
                builder.store(builder.load(places[r][v], align=FLOAT_BYTES), sums[r][v])
        with cgutils.for_range(builder, m) as loop:
            right = [builder.load(w.at(loop.index, c, VECTOR), align=FLOAT_BYTES) for c in columns]
            for r in range(rows):
                left = _splat(builder, builder.load(a.at(own[r], loop.index, FLOAT)))
                for v in range(vectors):
                    product = builder.fmul(left, right[v])
                    builder.store(builder.fadd(builder.load(sums[r][v]), product), sums[r][v])
        for r in range(rows):
            for v in range(vectors):
                builder.store(builder.load(sums[r][v]), places[r][v], align=FLOAT_BYTES)
        return context.get_dummy_value()

    def tile(
        typing: Any, a: Type, w: Type, o: Type, row: Type, column: Type, m: Type
    ) -> tuple[Any, Any]:
        return types.void(a, w, o, types.intp, types.intp, types.intp), generate

    def plain(a: Float32s, w: Float32s, o: Float32s, row: int, column: int, m: int) -> None:
        own, columns = slice(row, row + rows), slice(column, column + vectors * LANES)
        for k in range(m):
            o[own, columns] += a[own, k : k + 1] * w[k : k + 1, columns]

    return plain if SETTINGS["DISABLE_JIT"] else cast(Tile, intrinsic(tile))


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(VECTOR, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, undefined, mask)


tile_4x64 = _tile(4, 4)
tile_1x64 = _tile(1, 4)
tile_4x16 = _tile(4, 1)
tile_1x16 = _tile(1, 1)


@inline
def add_tiles(a: Float32s, w: Float32s, o: Float32s, rows: int, m: int, n: int) -> None:
    """``add_product`` for the first n − n % 16 columns."""
    whole = rows - rows % 4
    column = 0
    while column + 64 <= n:
        for row in range(0, whole, 4):
            tile_4x64(a, w, o, row, column, m)
        for row in range(whole, rows):
            tile_1x64(a, w, o, row, column, m)
        column += 64
    while column + 16 <= n:
        for row in range(0, whole, 4):
            tile_4x16(a, w, o, row, column, m)
        for row in range(whole, rows):
            tile_1x16(a, w, o, row, column, m)
        column += 16


@inline
def add_product(
    a: Float32s, w: Float32s, o: Float32s, rows: int, m: int, n: int, pad: Float32s
) -> None:
    """o [rows, n] += a [rows, m] @ w [m, n]; ``a`` may be a transposed view.

    Columns beyond the last 16 go through ``pad`` [at least m + rows, 16].
    """
    add_tiles(a, w, o, rows, m, n)
    left = n % LANES
    if left == 0:
        return
    first = n - left
    if rows < 4:
        for s in range(rows):
            for j in range(first, n):
                total = o[s, j]
                for k in range(m):
                    total += a[s, k] * w[k, j]
                o[s, j] = total
        return
    narrow, sums = pad[:m], pad[m : m + rows]
    # Whatever stands in the other columns stays there: a column is its own sum.
    for k in range(m):
        for j in range(left):
            narrow[k, j] = w[k, first + j]
    for s in range(rows):
        for j in range(left):
            sums[s, j] = o[s, first + j]
    add_tiles(a, narrow, sums, rows, m, LANES)
    for s in range(rows):
        for j in range(left):
            o[s, first + j] = sums[s, j]
