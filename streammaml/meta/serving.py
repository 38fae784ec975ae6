"""A torch module in the worker: the two passes that the compiled loop calls, and version 0.

Rule: the same parameters and inputs give the same bits, whatever came before. So a module is in
eval mode, its buffers stay as they were made, every pass works on memory of torch's own, and one
thread computes. A module that cannot keep this is refused at the start, with the cure.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from streammaml.custom import make_network
from streammaml.errors import ConfigError
from streammaml.events import Float32s
from streammaml.initialization import Initialization, Spec

PROBE_ROWS = 3


class Frozen(NamedTuple):
    """A buffer, and what it has to be at every pass."""

    owner: nn.Module
    name: str
    value: Tensor
    used: Tensor

    def thaw(self) -> None:
        """Undo what a pass did to it, in place or by another tensor."""
        self.used.copy_(self.value)
        self.owner._buffers[self.name] = self.used


class ModulePasses:
    """Both passes of a module of one's own, whose parameters are views of one flat vector."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._parameters = list(module.parameters())
        self._edges = [0]
        for parameter in self._parameters:
            self._edges.append(self._edges[-1] + parameter.numel())
        flat = torch.empty(self._edges[-1])
        for i, parameter in enumerate(self._parameters):
            first, last = self._edges[i : i + 2]
            parameter.data = flat[first:last].view(parameter.shape)
        self._flat = flat.numpy()
        self._buffers = [
            Frozen(owner, name, value, value.clone())
            for owner in module.modules()
            for name, value in owner._buffers.items()
            if value is not None
        ]
        self._outputs: Tensor | None = None

    def forward(
        self, parameters: Float32s, inputs: Float32s, outputs: Float32s, keep: bool
    ) -> None:
        """Write the outputs [rows, K] of inputs [rows, F]; ``keep``: ``backward`` comes next."""
        np.copyto(self._flat, parameters)
        for buffer in self._buffers:
            buffer.thaw()
        entered = torch.empty(inputs.shape)  # torch's own: aligned alike at every call
        np.copyto(entered.numpy(), inputs)
        with torch.set_grad_enabled(keep):
            left = self._module(entered)
        if left.shape != outputs.shape:
            raise ValueError(
                f"inputs {list(inputs.shape)} give outputs {list(left.shape)}, "
                f"not {list(outputs.shape)}"
            )
        np.copyto(outputs, left.detach().numpy())
        self._outputs = left if keep else None

    def backward(self, slope: Float32s, gradient: Float32s) -> None:
        """Write the gradient [P] from the slope [rows, K] by the outputs of the last forward."""
        outputs, self._outputs = self._outputs, None
        assert outputs is not None, "forward(…, keep=True) first"
        slopes = torch.empty_like(outputs, requires_grad=False)
        np.copyto(slopes.numpy(), slope)
        found = torch.autograd.grad(outputs, self._parameters, slopes, allow_unused=True)
        for i, part in enumerate(found):
            first, last = self._edges[i : i + 2]
            gradient[first:last] = 0.0 if part is None else part.numpy().ravel()


class TorchNetwork:
    """The network of ``learner.network = "package.module:factory"``, made from a seed.

    ConfigError, naming the cure, of a module that a worker cannot serve.
    """

    def __init__(self, spec: Spec, seed: int) -> None:
        self.spec = spec
        self._seed = seed
        torch.set_num_threads(1)  # of the process: rows are few, and sums keep their order
        module = self._make()
        self._check(module)
        self._check_drawing(module)
        self._probe()

    def passes(self) -> ModulePasses:
        """Passes of a module of its own: no two of them share anything that moves."""
        return ModulePasses(self._make())

    def initial(self, rate: float) -> Initialization:
        """Version 0: the parameters as the factory made them; equal on all workers."""
        spec = self.spec
        made = _tensors(self._make())
        tensors: dict[str, Float32s] = {name: made[name].copy() for name, _ in spec.parameters}
        tensors["rates"] = np.full((spec.steps, len(spec.parameters)), rate, np.float32)
        return Initialization(spec=spec, tensors=tensors, notes={"seed": str(self._seed)})

    def _make(self, seed: int | None = None) -> nn.Module:
        """A new module; the process's own random numbers stay where they are."""
        inputs, outputs = self.spec.sizes
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(self._seed if seed is None else seed)
            made: nn.Module = make_network(self.spec.network, inputs, outputs)
        return made.to("cpu", torch.float32).eval()

    def _check(self, module: nn.Module) -> None:
        """Whether it is one that can be served at all."""
        for name, part in module.named_modules():
            if isinstance(part, _BatchNorm):
                raise self._refused(
                    f"{name or 'it'} is a {type(part).__name__}: use GroupNorm or LayerNorm; its "
                    "running statistics would mix the contexts, and drift without a trace"
                )
        parameters = dict(module.named_parameters())
        for name in {"rates", *replace(self.spec, parameters=()).optional_shapes()} & {*parameters}:
            raise self._refused(f"the name {name} is taken: give that parameter another one")
        for name, parameter in parameters.items():
            if not parameter.requires_grad:
                raise self._refused(
                    f"{name} does not require a gradient: register it as a buffer, or let the rule "
                    "anil keep all but the last layer"
                )
            if parameter.dtype != torch.float32:
                raise self._refused(f"{name} is {parameter.dtype}: parameters are float32")
        shapes = tuple((name, tuple(p.shape)) for name, p in parameters.items())
        if shapes != self.spec.parameters:
            raise self._refused("its parameters have other names or shapes each time it is made")

    def _check_drawing(self, module: nn.Module) -> None:
        """Whether the seed alone decides what is made; and of buffers, which no initialization
        holds, not even that: the outer loop makes the module without it.
        """
        again, otherwise = _tensors(self._make()), _tensors(self._make(self._seed + 1))
        for name, tensor in _tensors(module).items():
            if not np.array_equal(tensor, again[name], equal_nan=True):
                raise self._refused(
                    f"{name} is another each time it is made: draw by torch's default generator"
                )
        for name, _ in module.named_buffers():
            if not np.array_equal(again[name], otherwise[name], equal_nan=True):
                raise self._refused(
                    f"the buffer {name} is drawn by torch's default generator, whose seed differs: "
                    "draw it by a torch.Generator with a seed of its own"
                )

    def _probe(self) -> None:
        """Whether both passes work, and do the same each time."""
        inputs, outputs = self.spec.sizes
        passes, parameters = self.passes(), self.initial(0.0).theta()
        gradient = np.empty(sum(math.prod(shape) for _, shape in self.spec.parameters), np.float32)
        for rows in (1, PROBE_ROWS):
            entered = np.linspace(-1, 1, rows * inputs, dtype=np.float32).reshape(rows, inputs)
            found = [np.empty((rows, outputs), np.float32) for _ in range(2)]
            try:
                for left in found:
                    passes.forward(parameters, entered, left, keep=True)
                    passes.backward(np.ones_like(left), gradient)
            except Exception as error:  # it is the user's code
                raise self._refused(f"{type(error).__name__}: {error}") from error
            if found[0].tobytes() != found[1].tobytes():
                raise self._refused(
                    "its outputs differ from call to call: what it draws or counts in forward must "
                    "stop in eval mode"
                )

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(f"learner.network: {self.spec.network} cannot be served: {why}")


def _tensors(module: nn.Module) -> dict[str, NDArray[Any]]:
    found = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor.detach().numpy() for name, tensor in found.items()}
