"""The passes of a network that is not compiled: Python, called from a kernel as C functions.

Rule: an address is a number among the data, so one compiled loop serves every network. What the
Python side raises never crosses compiled code: it is kept, the kernel goes on with NaN, and
:meth:`Callbacks.check` raises it afterwards.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]  # ships no types
from numba import types
from numba.core.types import Type
from numba.extending import intrinsic

from streammaml.errors import ConfigError
from streammaml.events import Float32s, Ints
from streammaml.initialization import Initialization, Spec
from streammaml.learner.kernels.compiler import SETTINGS

WHOLE, POINTER = ctypes.c_int64, ctypes.c_void_p
FORWARD = ctypes.CFUNCTYPE(WHOLE, POINTER, POINTER, POINTER, WHOLE, WHOLE, WHOLE)
BACKWARD = ctypes.CFUNCTYPE(WHOLE, POINTER, POINTER, WHOLE, WHOLE)


class Passes(Protocol):
    """Both passes of a network, with what one leaves for the other: for one thread at a time."""

    def forward(
        self, parameters: Float32s, inputs: Float32s, outputs: Float32s, keep: bool
    ) -> None:
        """Write the outputs [rows, K] of inputs [rows, F]; ``keep``: ``backward`` comes next."""
        ...

    def backward(self, slope: Float32s, gradient: Float32s) -> None:
        """Write the gradient [P] from the slope [rows, K] by the outputs of the last forward."""
        ...


class Network(Protocol):
    """A network of the user's own: what a learner needs of it, and what starts one."""

    @property
    def spec(self) -> Spec: ...
    def passes(self) -> Passes:
        """Passes of one's own: no two of them share anything that moves."""
        ...

    def initial(self, rate: float) -> Initialization:
        """Version 0: equal on all workers."""
        ...


class Callbacks:
    """C functions around ``passes``: the kernel's way out, one for each learner."""

    def __init__(self, passes: Passes, spec: Spec) -> None:
        self._passes = passes
        self._name = spec.network
        self._inputs, self._outputs = spec.sizes[0], spec.outputs
        self._parameters = sum(int(np.prod(shape)) for shape in spec.shapes().values())
        self._error: BaseException | None = None
        # Compiled code has their addresses only: they must live as long as this does.
        self._functions = FORWARD(self._forward), BACKWARD(self._backward)
        addresses = [ctypes.cast(function, POINTER).value for function in self._functions]
        self.addresses: Ints = np.array(addresses, np.int64)

    def check(self) -> None:
        """Raise what a pass has raised since this was last asked."""
        error, self._error = self._error, None
        if error is not None:
            error.add_note(f"raised by learner.network, {self._name}")
            raise error

    def _forward(
        self, parameters: int, inputs: int, outputs: int, stride: int, rows: int, keep: int
    ) -> int:
        return self._attempt(
            lambda: self._passes.forward(
                _vector(parameters, self._parameters),
                _matrix(inputs, rows, stride, self._inputs),
                _matrix(outputs, rows, stride, self._outputs),
                keep != 0,
            )
        )

    def _backward(self, slope: int, gradient: int, stride: int, rows: int) -> int:
        return self._attempt(
            lambda: self._passes.backward(
                _matrix(slope, rows, stride, self._outputs), _vector(gradient, self._parameters)
            )
        )

    def _attempt(self, work: Callable[[], None]) -> int:
        """1; or 0 where it failed, now or earlier in this call of the kernel."""
        if self._error is not None:
            return 0
        try:
            work()
        except BaseException as error:  # an interrupt too: it comes out of ``check``
            self._error = error
            return 0
        return 1


def callbacks_of(spec: Spec, network: Network | None) -> Callbacks | None:
    """The kernel's way to a network of the user's own; None of one that is compiled."""
    if not spec.network:
        return None
    if network is None:
        raise ConfigError(
            f"learner.network: {spec.network} is not compiled, so the learner must be given it: "
            "`starts.load_network` makes it"
        )
    assert network.spec == spec
    return Callbacks(network.passes(), spec)


def _vector(address: int, size: int) -> Float32s:
    numbers: Any = (ctypes.c_float * size).from_address(address)  # a buffer; typed as none
    return np.frombuffer(numbers, np.float32)


def _matrix(address: int, rows: int, stride: int, columns: int) -> Float32s:
    """The first ``columns`` of rows that lie ``stride`` numbers apart."""
    return _vector(address, rows * stride).reshape(rows, stride)[:, :columns]


def call_c(context: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
    """Call the C function at the first argument: arrays as pointers to their data, numbers as
    they are.
    """
    whole, pointer = ir.IntType(64), ir.IntType(8).as_pointer()
    values, kinds = [], []
    for kind, value in zip(signature.args[1:], arguments[1:], strict=True):
        if isinstance(kind, types.Array):
            data = context.make_array(kind)(context, builder, value).data
            value = builder.bitcast(data, pointer)
        values.append(value)
        kinds.append(pointer if isinstance(kind, types.Array) else whole)
    function = ir.FunctionType(whole, kinds).as_pointer()
    return builder.call(builder.inttoptr(arguments[0], function), values)


def _forward_types(
    typing: Any,
    address: Type,
    parameters: Type,
    inputs: Type,
    outputs: Type,
    stride: Type,
    rows: Type,
    keep: Type,
) -> tuple[Any, Any]:
    whole = types.int64
    return whole(whole, parameters, inputs, outputs, whole, whole, whole), call_c


def _backward_types(
    typing: Any, address: Type, slope: Type, gradient: Type, stride: Type, rows: Type
) -> tuple[Any, Any]:
    whole = types.int64
    return whole(whole, slope, gradient, whole, whole), call_c


def _plainly(prototype: Callable[[int], Callable[..., int]]) -> Callable[..., int]:
    """The same without a compiler."""

    def call(address: int, *arguments: Float32s | int) -> int:
        plain = [a.ctypes.data if isinstance(a, np.ndarray) else int(a) for a in arguments]
        return prototype(int(address))(*plain)

    return call


call_forward: Callable[[int, Float32s, Float32s, Float32s, int, int, int], int]
call_backward: Callable[[int, Float32s, Float32s, int, int], int]
if SETTINGS["DISABLE_JIT"]:
    call_forward, call_backward = _plainly(FORWARD), _plainly(BACKWARD)
else:
    call_forward = cast(Callable[..., int], intrinsic(_forward_types))
    call_backward = cast(Callable[..., int], intrinsic(_backward_types))
