"""Torch modules that a worker serves, and that take some care to train: factories of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

PATH = "tests.meta.odd_modules"


class Recurrent(nn.Module):
    """Its inputs are a sequence; vmap knows no GRU and no LSTM."""

    def __init__(self, kind: type[nn.GRU | nn.LSTM], outputs: int) -> None:
        super().__init__()
        self.cells = kind(4, 3, batch_first=True)
        self.head = nn.Linear(3, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.cells(x.view(len(x), -1, 4))[0][:, -1])
        return outputs


class Attentive(nn.Module):
    """The fused operations of attention have no second derivative, or none at all."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.layer(x.view(len(x), -1, 4)).mean(1))
        return outputs


class Layers(nn.Module):
    """Two layers, and what a subclass does between them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, 4)
        self.head = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.between(self.body(x)))
        return outputs

    def between(self, x: Tensor) -> Tensor:
        return x.tanh()


class Branching(Layers):
    """An ``if`` on numbers."""

    def between(self, x: Tensor) -> Tensor:
        return x / 10 if x.abs().max() > 1e6 else x.tanh()


class Writing(Layers):
    """Writes into a new tensor in place."""

    def between(self, x: Tensor) -> Tensor:
        room = torch.zeros(len(x), 4, dtype=x.dtype)
        room[:, :3] = x.tanh()[:, 1:]
        return room


class Scaled(Layers):
    """One of its parameters is a single number."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def between(self, x: Tensor) -> Tensor:
        return x.tanh() * self.scale


class Shifted(Layers):
    """A buffer as NumPy makes it."""

    shift: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("shift", torch.full((4,), 0.25, dtype=torch.float64))

    def between(self, x: Tensor) -> Tensor:
        return functional.linear(x.tanh() + self.shift, torch.eye(4, dtype=x.dtype))


class _Once(torch.autograd.Function):
    """Has a derivative and no second one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError("no second derivative\nof this")
        return 2 * slope


class Once(Layers):
    def between(self, x: Tensor) -> Tensor:
        doubled: Tensor = _Once.apply(x)  # type: ignore[no-untyped-call]  # torch has no types
        return doubled


class Hidden(Layers):
    """Keeps a parameter where nobody can put another in its place."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.kept = [self.body.weight]

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head((x @ self.kept[0].mT).tanh() + self.body.bias)
        return outputs


def gru(inputs: int, outputs: int) -> nn.Module:
    return Recurrent(nn.GRU, outputs)


def lstm(inputs: int, outputs: int) -> nn.Module:
    return Recurrent(nn.LSTM, outputs)


def attentive(inputs: int, outputs: int) -> nn.Module:
    return Attentive(outputs)
