"""The loss of a task: a weighted mean over its examples, and its slope by the outputs.

Rule: the type of ``targets`` says which default loss. Whole numbers are class slots
(cross-entropy), floating ones are scaled values (Huber, δ = 1). Weight 0 is padding: no effect,
whatever stands there, as long as the network's outputs on it are finite.
"""

from __future__ import annotations

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


def loss(outputs: Tensor, examples: Examples, kind: Loss = Loss.DEFAULT) -> Tensor:
    """Weighted mean loss [T] of outputs [T, S, K]; 0 for a task whose weights are all 0."""
    _check(examples, kind)
    if examples.targets.is_floating_point():
        error = outputs[..., 0] - _targets(examples)
        zero = torch.zeros_like(error)
        each = (
            error.square()
            if kind is Loss.MSE
            else functional.huber_loss(error, zero, reduction="none")
        )
    elif kind is Loss.HINGE:
        used = outputs[..., : examples.classes or None]
        each = (1 - used * _signs(used, examples)).relu().sum(-1)
    else:
        used = outputs[..., : examples.classes or None]
        slots = _targets(examples).unsqueeze(-1)
        each = -torch.log_softmax(used, -1).gather(-1, slots).squeeze(-1)
    return (each * shares(examples)).sum(-1)


def slope(outputs: Tensor, examples: Examples, kind: Loss = Loss.DEFAULT) -> Tensor:
    """Gradient [T, S, K] of each task's :func:`loss` by the outputs [T, S, K], differentiable."""
    _check(examples, kind)
    if examples.targets.is_floating_point():
        error = outputs - _targets(examples).unsqueeze(-1)
        each = 2 * error if kind is Loss.MSE else error.clamp(-1, 1)
        return each * shares(examples).unsqueeze(-1)
    used = outputs[..., : examples.classes or None]
    if kind is Loss.HINGE:
        signs = _signs(used, examples)
        each = -signs * (used * signs < 1)
    else:
        slots = _targets(examples).unsqueeze(-1)
        each = torch.softmax(used, -1).scatter_add(-1, slots, -torch.ones_like(used[..., :1]))
    each = functional.pad(each, (0, outputs.shape[-1] - used.shape[-1]))
    return each * shares(examples).unsqueeze(-1)


def probabilities(outputs: Tensor, classes: int = 0, kind: Loss = Loss.DEFAULT) -> Tensor:
    """Of the class slots [..., K], 0 for those not in use; softmax, of twice the margins."""
    used = outputs[..., : classes or None]
    shared = torch.softmax(MARGIN_SCALE * used if kind is Loss.HINGE else used, -1)
    return functional.pad(shared, (0, outputs.shape[-1] - used.shape[-1]))


def shares(examples: Examples) -> Tensor:
    """Weights [T, S] divided by their sum over the task."""
    total = examples.weights.sum(-1, keepdim=True)
    return examples.weights / torch.where(total > 0, total, 1)


def _signs(used: Tensor, examples: Examples) -> Tensor:
    """+1 at the class of an example, −1 at the others, as outputs ``used`` [T, S, K]."""
    slots = _targets(examples).unsqueeze(-1)
    return torch.full_like(used, -1.0).scatter_(-1, slots, 1.0)


def _targets(examples: Examples) -> Tensor:
    """Targets [T, S] with padding at 0, so that it cannot name a slot that is not there."""
    return torch.where(examples.weights > 0, examples.targets, 0)


def _check(examples: Examples, kind: Loss) -> None:
    values = examples.targets.is_floating_point()
    if kind is (Loss.HINGE if values else Loss.MSE):
        raise ValueError(f"the loss {kind.value} is not one of {'values' if values else 'classes'}")
