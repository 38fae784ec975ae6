"""What is done to whole vectors and matrices: copy, transpose, measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # ships no types
from numba import types
from numba.core.types import Type
from numba.extending import intrinsic

from streammaml.events import Float32s, Floats
from streammaml.learner.kernels.compiler import SETTINGS, inline, jit
from streammaml.learner.kernels.matmul import FLOAT_BYTES, LANES, VECTOR, Addresses

SUMS = 256
Numbers = TypeVar("Numbers", Float32s, Floats)


@inline
def copy(source: Numbers, target: Numbers) -> None:
    """target[:] = source, which numba writes eight times as slow, and with room for overlaps."""
    for i in range(target.shape[0]):
        target[i] = source[i]


@jit
def norm(values: Float32s, sums: Float32s) -> float:
    """Euclidean norm of ``values``, in 256 ``sums`` so that it runs as vector code."""
    for j in range(SUMS):
        sums[j] = np.float32(0.0)
    for i in range(0, values.shape[0], SUMS):
        block = values[i : i + SUMS]
        for j in range(block.shape[0]):
            sums[j] += block[j] * block[j]
    size = SUMS
    while size > LANES:
        size //= 2
        half = sums[size : 2 * size]
        for j in range(size):
            sums[j] += half[j]
    total = 0.0
    for j in range(LANES):
        total += sums[j]
    return float(np.sqrt(total))


def _turn(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
    """``transpose`` of 16 × 16 numbers from ``row`` and ``column`` of the source on."""
    source, target = (
        Addresses(context, builder, signature.args[i], arguments[i]) for i in range(2)
    )

    def place(array: Addresses, first: Any, second: Any, i: int) -> Any:
        return array.at((builder.add(first, ir.Constant(first.type, i)), second), VECTOR)

    row, column = arguments[2:]
    rows = [builder.load(place(source, row, column, i), align=FLOAT_BYTES) for i in range(LANES)]
    span = 1
    while span < LANES:  # swap the off-diagonal quarters of every 2·span × 2·span square
        for i in range(LANES):
            if i & span == 0:
                upper, lower = rows[i], rows[i + span]
                lanes = range(LANES)
                left = [LANES + j - span if j & span else j for j in lanes]
                right = [LANES + j if j & span else j + span for j in lanes]
                rows[i] = _shuffle(builder, upper, lower, left)
                rows[i + span] = _shuffle(builder, upper, lower, right)
        span *= 2
    for i in range(LANES):
        builder.store(rows[i], place(target, column, row, i), align=FLOAT_BYTES)
    return context.get_dummy_value()


def _shuffle(builder: Any, first: Any, second: Any, lanes: Sequence[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(lanes))
    return builder.shuffle_vector(first, second, mask)


def _turn_types(
    typing: Any, source: Type, target: Type, row: Type, column: Type
) -> tuple[Any, Any]:
    return types.void(source, target, types.intp, types.intp), _turn


def _turn_plainly(source: Float32s, target: Float32s, row: int, column: int) -> None:
    rows, columns = slice(row, row + LANES), slice(column, column + LANES)
    target[columns, rows] = source[rows, columns].T


turn = (
    _turn_plainly
    if SETTINGS["DISABLE_JIT"]
    else cast(Callable[[Float32s, Float32s, int, int], None], intrinsic(_turn_types))
)


@jit
def transpose(source: Float32s, target: Float32s) -> None:
    """target [n, m] = source [m, n] transposed."""
    m, n = source.shape
    rows, columns = m - m % LANES, n - n % LANES
    for k in range(0, rows, LANES):
        for j in range(0, columns, LANES):
            turn(source, target, k, j)
    for k in range(m):
        for j in range(columns if k < rows else 0, n):
            target[j, k] = source[k, j]
