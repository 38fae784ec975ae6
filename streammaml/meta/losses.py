"""The loss of a task: a weighted mean over its examples, and its slope by the outputs.

Rule: the type of ``targets`` says which default loss. Whole numbers are class slots
(cross-entropy), floating ones are scaled values (Huber, δ = 1). Weight 0 is padding: no effect,
whatever stands there, as long as the network's outputs on it are finite.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MARGIN_SCALE = 2.0
"""Of the softmax that makes probabilities of margins."""


class Loss(StrEnum):
    """What the inner and the outer loop lessen."""

    DEFAULT = "default"
    """Cross-entropy of class slots, Huber(1) of values."""
    MSE = "mse"
    """Squared error of values."""
    HINGE = "hinge"
    """One class against the rest, summed over the classes: the outputs are margins."""

    @property
    def curved(self) -> bool:
        """Whether its slope has one: without, there is no second order to take."""
        return self is not Loss.HINGE


class Examples(NamedTuple):
    """Labelled examples of T tasks, padded to S: a support set or a query set."""

    inputs: Tensor  # [T, S, F]
    targets: Tensor  # [T, S], int64 class slots, or floating (y − m_y)/s_y
    weights: Tensor  # [T, S], at least 0; 0 marks padding
    classes: int = 0
    """Class slots in use, the first ones of the K; the others are masked. 0: all are in use."""

    def part(self, tasks: slice) -> Examples:
        """Some of the tasks."""
        return Examples(self.inputs[tasks], self.targets[tasks], self.weights[tasks], self.classes)


class Objective:
    """The loss of one set of examples: what is the same for all outputs is worked out once."""

    def __init__(self, examples: Examples, kind: Loss = Loss.DEFAULT) -> None:
        values = examples.targets.is_floating_point()
        if kind is (Loss.HINGE if values else Loss.MSE):
            raise ValueError(f"no loss {kind.value} of {'values' if values else 'classes'}")
        self._kind = kind
        self._values = values
        self._used = examples.classes or None
        self._shares = shares(examples)
        # Padding stands at 0, so that it cannot name a slot that is not there.
        self._targets = torch.where(examples.weights > 0, examples.targets, 0)
        self._code: Tensor | None = None

    def loss(self, outputs: Tensor) -> Tensor:
        """Weighted mean loss [T] of outputs [T, S, K]; 0 for a task whose weights are all 0."""
        if self._values:
            output = outputs[..., 0]
            if self._kind is Loss.MSE:
                each = (output - self._targets).square()
            else:
                each = functional.huber_loss(output, self._targets, reduction="none")
        elif self._kind is Loss.HINGE:
            used = outputs[..., : self._used]
            each = (1 - used * (2 * self._coded(used) - 1)).relu().sum(-1)
        else:
            used = _as_rows(torch.log_softmax, outputs[..., : self._used])
            each = -used.gather(-1, self._targets.unsqueeze(-1)).squeeze(-1)
        return (each * self._shares).sum(-1)

    def slope(self, outputs: Tensor) -> Tensor:
        """Gradient [T, S, K] of each task's loss by the outputs [T, S, K], differentiable."""
        shares = self._shares.unsqueeze(-1)
        if self._values:
            error = outputs - self._targets.unsqueeze(-1)
            return shares * (2 * error if self._kind is Loss.MSE else error.clamp(-1, 1))
        used = outputs[..., : self._used]
        coded = self._coded(used)
        if self._kind is Loss.HINGE:
            signs = 2 * coded - 1
            each = -signs * (used * signs < 1)
        else:
            each = _as_rows(torch.softmax, used) - coded
        if used.shape[-1] < outputs.shape[-1]:
            each = functional.pad(each, (0, outputs.shape[-1] - used.shape[-1]))
        return each * shares

    def _coded(self, used: Tensor) -> Tensor:
        """1 at the class of an example, 0 at the others, as outputs ``used`` [T, S, K]."""
        if self._code is None:
            slots = torch.arange(used.shape[-1])
            self._code = (self._targets.unsqueeze(-1) == slots).to(used.dtype)
        return self._code


def loss(outputs: Tensor, examples: Examples, kind: Loss = Loss.DEFAULT) -> Tensor:
    """Weighted mean loss [T] of outputs [T, S, K]."""
    return Objective(examples, kind).loss(outputs)


def probabilities(outputs: Tensor, classes: int = 0, kind: Loss = Loss.DEFAULT) -> Tensor:
    """Of the class slots [..., K], 0 for those not in use; softmax, of twice the margins."""
    used = outputs[..., : classes or None]
    shared = torch.softmax(MARGIN_SCALE * used if kind is Loss.HINGE else used, -1)
    return functional.pad(shared, (0, outputs.shape[-1] - used.shape[-1]))


def shares(examples: Examples) -> Tensor:
    """Weights [T, S] divided by their sum over the task."""
    total = examples.weights.sum(-1, keepdim=True)
    return examples.weights / torch.where(total > 0, total, 1)


def _as_rows(softmax: Callable[[Tensor, int], Tensor], used: Tensor) -> Tensor:
    """A softmax over the last dimension, taken over rows: over few columns it is slow."""
    return softmax(used.mT, -2).mT
