"""The loss of a task: a weighted mean over its examples, and its slope by the outputs.

Rule: the type of ``targets`` says which loss. Whole numbers are class slots (cross-entropy),
floating ones are scaled values (Huber, δ = 1). Weight 0 is padding: no effect, whatever stands
there, as long as the network's outputs on it are finite.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Examples(NamedTuple):
    """Labelled examples of T tasks, padded to S: a support set or a query set."""

    inputs: Tensor  # [T, S, F]
    targets: Tensor  # [T, S], int64 class slots, or floating (y − m_y)/s_y
    weights: Tensor  # [T, S], at least 0; 0 marks padding
    classes: int = 0
    """Class slots in use, the first ones of the K; the others are masked. 0: all are in use."""


def loss(outputs: Tensor, examples: Examples) -> Tensor:
    """Weighted mean loss [T] of outputs [T, S, K]; 0 for a task whose weights are all 0."""
    if examples.targets.is_floating_point():
        each = functional.huber_loss(outputs[..., 0], _targets(examples), reduction="none")
    else:
        slots = _targets(examples).unsqueeze(-1)
        used = outputs[..., : examples.classes or None]
        each = -torch.log_softmax(used, -1).gather(-1, slots).squeeze(-1)
    return (each * shares(examples)).sum(-1)


def slope(outputs: Tensor, examples: Examples) -> Tensor:
    """Gradient [T, S, K] of each task's :func:`loss` by the outputs [T, S, K], differentiable."""
    if examples.targets.is_floating_point():
        each = (outputs - _targets(examples).unsqueeze(-1)).clamp(-1, 1)
    else:
        slots = _targets(examples).unsqueeze(-1)
        used = outputs[..., : examples.classes or None]
        each = torch.softmax(used, -1).scatter_add(-1, slots, -torch.ones_like(used[..., :1]))
        each = functional.pad(each, (0, outputs.shape[-1] - used.shape[-1]))
    return each * shares(examples).unsqueeze(-1)


def shares(examples: Examples) -> Tensor:
    """Weights [T, S] divided by their sum over the task."""
    total = examples.weights.sum(-1, keepdim=True)
    return examples.weights / torch.where(total > 0, total, 1)


def _targets(examples: Examples) -> Tensor:
    """Targets [T, S] with padding at 0, so that it cannot name a slot that is not there."""
    return torch.where(examples.weights > 0, examples.targets, 0)
