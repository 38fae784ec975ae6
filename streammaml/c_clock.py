"""The C library's monotonic clock, as compiled code can ask it."""

from __future__ import annotations

import ctypes
import time


def monotonic() -> tuple[int, int]:
    """Address of ``clock_gettime`` and the number of the clock; zeros where there is none."""
    try:
        function = ctypes.CDLL(None).clock_gettime
        return ctypes.cast(function, ctypes.c_void_p).value or 0, time.CLOCK_MONOTONIC
    except (AttributeError, OSError, TypeError):
        return 0, 0
