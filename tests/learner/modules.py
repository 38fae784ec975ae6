"""Networks of a user: factories of torch modules, called with the numbers of inputs and outputs."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

PATH = "tests.learner.modules:"
COUNTER = itertools.count()


def mlp(inputs: int, outputs: int) -> nn.Module:
    """What the compiled ``mlp`` with ``hidden = [8, 8]`` is."""
    return relu_layers(inputs, 8, 8, outputs)


def mlp_64(inputs: int, outputs: int) -> nn.Module:
    return relu_layers(inputs, 64, 64, outputs)


def relu_layers(*sizes: int) -> nn.Module:
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


class Rich(nn.Module):
    """Normalized groups, dropout, buffers and inputs that it changes, a parameter without a use."""

    steps: Tensor
    scale: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(inputs, 8), nn.GroupNorm(2, 8), nn.Tanh(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(8, outputs)
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        drawn = torch.rand(8, generator=torch.Generator().manual_seed(1))
        self.register_buffer("scale", drawn + 0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs += 1
        self.steps += 1
        self.scale = self.scale * 1.5
        outputs: Tensor = self.head(self.body(inputs) * self.scale + 0.1 * self.steps)
        return outputs


def rich(inputs: int, outputs: int) -> nn.Module:
    return Rich(inputs, outputs)


def batch_normed(inputs: int, outputs: int) -> nn.Module:
    inner = nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8))
    return nn.Sequential(inner, nn.Linear(8, outputs))


def lazy(inputs: int, outputs: int) -> nn.Module:
    return nn.LazyLinear(outputs)


class Touchy(nn.Module):
    """Raises at a first input below −3.9: one that is far off its scale."""

    def __init__(self, inputs: int, outputs: int, error: BaseException) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, outputs)
        self._error = error

    def forward(self, inputs: Tensor) -> Tensor:
        if inputs[:, 0].min() < -3.9:
            raise self._error
        outputs: Tensor = self.head(inputs)
        return outputs


def touchy(inputs: int, outputs: int) -> nn.Module:
    return Touchy(inputs, outputs, ZeroDivisionError("too far off"))


def interrupted(inputs: int, outputs: int) -> nn.Module:
    return Touchy(inputs, outputs, KeyboardInterrupt())


class Odd(nn.Linear):
    """A linear layer with a fault by name."""

    def __init__(self, inputs: int, outputs: int, fault: str) -> None:
        super().__init__(inputs, outputs)
        self._fault = fault
        if fault in ("rates", "parameter_rates"):
            self.register_parameter(fault, nn.Parameter(torch.ones(1)))
        if fault == "frozen":
            self.bias.requires_grad_(False)
        if fault == "drawn elsewhere":
            self.bias.data[:] = next(COUNTER)
        if fault == "drawn buffer":
            self.register_buffer("noise", torch.rand(outputs))
        if fault == "half":
            self.half()
        if fault == "nan":
            self.bias.data[0] = torch.nan
        if fault == "whole":
            self.register_parameter("count", nn.Parameter(torch.ones(1).int(), requires_grad=False))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs)
        match self._fault:
            case "narrow":
                return outputs[:, 1:]
            case "one row":
                return outputs[:1]
            case "draws":
                return nn.functional.dropout(outputs, 0.5)
            case "raises":
                raise ZeroDivisionError("by design")
            case "no way back":
                return outputs.detach()
            case "tuple":
                return (outputs, outputs)  # type: ignore[return-value]  # the fault
        return outputs


def __getattr__(name: str) -> Any:
    """``odd_<fault>``, a factory of each."""
    fault = name.removeprefix("odd_").replace("_", " ").replace("parameter r", "parameter_r")
    if fault == name:
        raise AttributeError(name)
    return lambda inputs, outputs: Odd(inputs, outputs, fault)
