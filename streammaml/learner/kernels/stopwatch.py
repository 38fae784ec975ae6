"""How long an adaptation takes: a C clock that the shell hands in, as an address among the data.

Rule: what it says goes to the decisions as a number for metrics, and decides nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numba import types
from numba.core.types import Type
from numba.extending import intrinsic

from streammaml.events import Ints
from streammaml.learner.kernels.callbacks import call_c
from streammaml.learner.kernels.compiler import SETTINGS, inline
from streammaml.learner.state import Scratch

CLOCK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
"""``clock_gettime``."""


def _types(typing: Any, address: Type, which: Type, moment: Type) -> tuple[Any, Any]:
    return types.int64(types.int64, types.int64, moment), call_c


def _plainly(address: int, which: int, moment: Ints) -> int:
    return int(CLOCK(int(address))(int(which), moment.ctypes.data))


ask: Callable[[int, int, Ints], int] = (
    _plainly if SETTINGS["DISABLE_JIT"] else cast(Callable[..., int], intrinsic(_types))
)


@inline
def seconds(scratch: Scratch) -> float:
    """What the clock says; NaN without one."""
    clock, moment = scratch.clock, scratch.moment
    if clock[0] == 0:
        return np.nan
    ask(clock[0], clock[1], moment)
    return float(moment[0] + 1e-9 * moment[1])
