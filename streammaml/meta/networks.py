"""A stack of networks, one for each task, as pure functions of their parameters.

Parameters are named as in :meth:`streammaml.initialization.Spec.shapes`: ``{i}.weight`` [in, out]
and ``{i}.bias`` [out]; stacked, each leads with [T]. ReLU stands between the layers, nothing after
the last; one layer is a linear model.

Rule: the backward pass is written out in differentiable operations. First order runs it without a
graph, second order differentiates through it; there is no second formula to keep in step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from streammaml.initialization import Spec

Parameters = dict[str, Tensor]


def split(vector: Tensor, spec: Spec) -> Parameters:
    """View the first P numbers of a vector as named tensors, in the order of ``Spec.shapes``."""
    parameters, first = {}, 0
    for name, shape in spec.shapes().items():
        stop = first + math.prod(shape)
        parameters[name] = vector[first:stop].view(shape)
        first = stop
    return parameters


def stack(parameters: Mapping[str, Tensor], tasks: int) -> Parameters:
    """Give each of ``tasks`` tasks a view of the same parameters; stacked ones stay as they are."""
    if parameters["0.weight"].dim() == 3:
        return dict(parameters)
    return {name: p.expand(tasks, *p.shape) for name, p in parameters.items()}


def forward(parameters: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Outputs [T, S, K] of inputs [T, S, F] by stacked parameters, and what entered each layer."""
    last = len(parameters) // 2 - 1
    entered, hidden = [], inputs
    for i in range(last + 1):
        entered.append(hidden)
        bias = parameters[f"{i}.bias"].unsqueeze(1)
        hidden = torch.baddbmm(bias, hidden, parameters[f"{i}.weight"])  # [T, S, out]
        if i < last:
            hidden = hidden.relu()
    return hidden, entered


def apply(parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Outputs [T, S, K] of network t on its own inputs [T, S, F]."""
    return forward(parameters, inputs)[0]


def backward(parameters: Mapping[str, Tensor], entered: list[Tensor], slope: Tensor) -> Parameters:
    """Gradient by each stacked parameter, from ``slope`` = ∂loss/∂outputs [T, S, K]."""
    gradients: Parameters = {}
    for i in reversed(range(len(entered))):
        hidden = entered[i]
        gradients[f"{i}.bias"] = slope.sum(1)
        gradients[f"{i}.weight"] = torch.bmm(hidden.mT, slope)
        if i > 0:
            # A ReLU's output is never negative, so its sign is its derivative.
            passed = hidden.detach().sign()
            slope = torch.bmm(slope, parameters[f"{i}.weight"].mT) * passed  # [T, S, in]
    return {name: gradients[name] for name in parameters}
