"""Networks, one for each task, as pure functions of their parameters.

A tensor of parameters is each task's own, stacked, where it leads with [T], and is shared by all
tasks where it does not. The built-in network names them as
:meth:`streammaml.initialization.Spec.shapes` does: ``{i}.weight`` [in, out] and ``{i}.bias`` [out].
ReLU stands between the layers, nothing after the last; one layer is a linear model.

Rule: the backward pass is written out in differentiable operations. First order runs it without a
graph, second order differentiates through it; there is no second formula to keep in step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from streammaml.initialization import Spec
from streammaml.meta.losses import Objective
from streammaml.meta.products import affine, inner, outer

Parameters = dict[str, Tensor]


class Network(Protocol):
    """What the loops ask of a model: its outputs, its gradients, and its last layer."""

    def apply(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs [T, S, K] of network t on its own inputs [T, S, F]."""

    def gradient(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Tensor,
        objective: Objective,
        moving: Collection[str],
    ) -> Parameters:
        """Gradient of each task's loss by its own, stacked parameters ``moving``.

        Differentiable where gradients are enabled.
        """

    def rank(self, name: str) -> int:
        """Dimensions of one task's tensor of that name."""

    def last(self, names: Collection[str]) -> tuple[str, ...]:
        """Those of the parameters ``names`` that belong to the last layer."""

    def split(
        self, parameters: Mapping[str, Tensor], inputs: Tensor
    ) -> tuple[Network, Tensor] | None:
        """The last layer as a network of its own, and what enters it [T, S, …].

        All ``parameters`` are shared here, so that the layers below run once over the examples of
        all tasks. Names stay the same. None where a network has no such layer.
        """


def split(vector: Tensor, spec: Spec) -> Parameters:
    """View the first P numbers of a vector as named tensors, in the order of ``Spec.shapes``."""
    parameters, first = {}, 0
    for name, shape in spec.shapes().items():
        stop = first + math.prod(shape)
        parameters[name] = vector[first:stop].view(shape)
        first = stop
    return parameters


def stack(
    network: Network, parameters: Mapping[str, Tensor], names: Collection[str], tasks: int
) -> Parameters:
    """The tensors ``names``, each task with a view of its own; stacked ones stay as they are."""
    return {
        name: p if p.dim() > network.rank(name) else p.expand(tasks, *p.shape)
        for name, p in ((name, parameters[name]) for name in names)
    }


class Mlp:
    """The built-in network of any depth; it reads the depth from its parameters."""

    def apply(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        return self._forward(parameters, inputs)[0]

    def gradient(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Tensor,
        objective: Objective,
        moving: Collection[str],
    ) -> Parameters:
        outputs, entered = self._forward(parameters, inputs)
        return _backward(parameters, entered, objective.slope(outputs), moving)

    def rank(self, name: str) -> int:
        return 2 if name.endswith("weight") else 1

    def last(self, names: Collection[str]) -> tuple[str, ...]:
        return tuple(names)[-2:]

    def split(
        self, parameters: Mapping[str, Tensor], inputs: Tensor
    ) -> tuple[Network, Tensor] | None:
        return MLP, self._forward(parameters, inputs)[1][-1]

    def _forward(
        self, parameters: Mapping[str, Tensor], inputs: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and what entered each layer."""
        tensors = list(parameters.values())
        entered, hidden = [], inputs
        for i in range(0, len(tensors), 2):
            if i > 0:
                hidden = hidden.relu()
            entered.append(hidden)
            weight, bias = tensors[i], tensors[i + 1]
            if weight.dim() == bias.dim() + 1 == 3:
                hidden = affine(hidden, weight, bias)  # [T, S, out]
            else:
                hidden = torch.matmul(hidden, weight) + bias.unsqueeze(-2)
        return hidden, entered


MLP = Mlp()


def _backward(
    parameters: Mapping[str, Tensor],
    entered: list[Tensor],
    slope: Tensor,
    moving: Collection[str],
) -> Parameters:
    """Gradients of ``moving``, from ``slope`` = ∂loss/∂outputs [T, S, K]."""
    names, gradients = list(parameters), Parameters()
    lowest = min(i for i, name in enumerate(names) if name in moving) // 2
    for i in reversed(range(lowest, len(entered))):
        hidden, weight, bias = entered[i], names[2 * i], names[2 * i + 1]
        if bias in moving:
            gradients[bias] = slope.sum(1)
        if weight in moving:
            gradients[weight] = inner(hidden, slope)
        if i > lowest:
            slope = _before(slope, parameters[weight])
            # The ReLU's own derivative, from its output.
            slope = torch.ops.aten.threshold_backward(slope, hidden.detach(), 0)
    return {name: gradients[name] for name in names if name in moving}


def _before(slope: Tensor, weight: Tensor) -> Tensor:
    """Slope [T, S, in] by what entered a layer."""
    return outer(slope, weight) if weight.dim() == 3 else torch.matmul(slope, weight.mT)
