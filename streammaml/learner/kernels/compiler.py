"""How kernels are compiled: numba, GIL free, no fastmath, and a cache that sees every source.

Rule: numba's own cache key ignores callees in other files, so the folder's name carries a hash of
all kernel sources and of numba's version. Where the folder cannot be written, what it holds is
used, as in an image; what it lacks compiles at every start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator

F = TypeVar("F", bound=Callable[..., object])


def _digest() -> str:
    learner = Path(__file__).parents[1]
    sources = [learner.parent / "events.py", *sorted(learner.glob("**/*.py"))]  # its constants, too
    text = b"".join(path.read_bytes() for path in sources) + numba.__version__.encode()
    return hashlib.sha256(text).hexdigest()[:16]


SETTINGS = vars(config)


def _cache() -> Path:
    """NUMBA_CACHE_DIR, or a folder of the user's; a place that cannot be for who has no home."""
    if SETTINGS["CACHE_DIR"]:
        return Path(SETTINGS["CACHE_DIR"])
    try:
        return Path.home() / ".cache" / "streammaml" / "kernels"
    except RuntimeError:
        return Path("/nonexistent")


FOLDER = _cache() / _digest()


class _Locator(UserProvidedCacheLocator):
    def ensure_cache_path(self) -> None:
        """Not by writing a file, as numba does."""


class _Implementation(CompileResultCacheImpl):
    _locator_classes = [_Locator]  # noqa: RUF012  # numba's own


class _Sealed(FunctionCache):
    """A cache that is read and never written."""

    _impl_class = _Implementation

    def save_overload(self, signature: Any, result: Any) -> None:
        """There is no room for it."""


def jit(function: F) -> F:
    """Compile ``function`` at its first call for the types of that call.

    Without reference counts: a count at every use of an array costs a third of an event. So
    ``function`` makes no array and returns none; who calls it holds on to what it works on.
    """
    return _compile(function, counted=False)


def entry(function: F) -> F:
    """Like :func:`jit`, with reference counts: for what Python calls, and for structures."""
    return _compile(function, counted=True)


def inline(function: F) -> F:
    """Like :func:`jit`, but copied into its callers: for what every event calls."""
    return cast(F, numba.njit(inline="always", error_model="numpy")(function))


def _compile(function: F, *, counted: bool) -> F:
    def compiled(*, cache: bool) -> F:
        hidden: Any = {"_nrt": counted}  # numba's name for them; not in its documentation
        return cast(F, numba.njit(nogil=True, cache=cache, error_model="numpy", **hidden)(function))

    before = SETTINGS["CACHE_DIR"]
    SETTINGS["CACHE_DIR"] = str(FOLDER)
    try:
        return _sealed(function, compiled(cache=True))
    except (RuntimeError, OSError):  # "no locator available": nothing can be written anywhere
        return _sealed(function, compiled(cache=False))
    finally:
        SETTINGS["CACHE_DIR"] = before


def _sealed(function: F, made: Any) -> F:
    """What was made, with the folder's cache even if numba had to look for another place."""
    if FOLDER.is_dir() and not Path(made._cache.cache_path or "").is_relative_to(FOLDER):
        made._cache = _Sealed(function)  # type: ignore[no-untyped-call]
    return cast(F, made)


def is_cached() -> bool:
    """Whether an earlier process left compiled kernels of exactly these sources."""
    return FOLDER.is_dir() and any(FOLDER.glob("**/*.nbc"))
