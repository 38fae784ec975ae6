"""The inner loop: a few clipped gradient steps on each task's support set, differentiable or not.

    φ_j ← φ_j − α_kj · β_j · ∇_j · min(1, clip/‖∇‖)      inner step k, tensor j

α are the rates; β, Meta-SGD's factor of each parameter, is 1 where there is none. The norm runs
over the tensors that move in the step, those whose rate is not 0; the others stay.

Rule: tasks share no fast weights, so everything is stacked over [T]. A result that is not finite is
a value, never an exception.

References:
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", 2017. Antoniou, Edwards, Storkey,
    "How to train your MAML" (rates for each layer and step), 2018. Li, Zhou, Chen, Li, "Meta-SGD",
    2017.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from streammaml.meta.losses import Examples, Loss
from streammaml.meta.networks import MLP, Network, Parameters, stack


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerLoop:
    """How every inner step is made."""

    clip_norm: float
    """The longest gradient a step may use, for each task over its moving tensors; inf: any."""
    loss: Loss = Loss.DEFAULT
    network: Network = MLP
    first_order: bool = True
    """Take the clipped gradients as constants. The rates still learn:
    ∂loss/∂α_kj = −⟨∂loss/∂φ_j, clipped ∇_kj⟩. No effect unless differentiable."""


def adapt(
    parameters: Mapping[str, Tensor],
    rates: Tensor,
    support: Examples,
    loop: InnerLoop,
    *,
    factors: Mapping[str, Tensor] | None = None,
    differentiable: bool = False,
) -> Parameters:
    """Take one step for each row of ``rates`` [steps, J] on every task's support set.

    Args:
        parameters: one set for all tasks, or stacked, each tensor leading with [T].
        rates: of step k on tensor j, in the order of ``parameters``.
        support: examples of T tasks.
        factors: β, shaped as one task's parameters.
        differentiable: keep the graph back to ``parameters``, ``rates`` and ``factors``.

    Returns:
        Fast weights, stacked; those that no step moves as they came.
    """
    fast, names = dict(parameters), list(parameters)
    with torch.set_grad_enabled(differentiable):
        for row in rates.unbind():
            # A rate of exactly 0 stands for a tensor that stays, and costs nothing.
            moving = [j for j, rate in enumerate(row.tolist()) if rate != 0]
            if not moving:
                continue
            own = [names[j] for j in moving]
            fast |= stack(loop.network, fast, own, len(support.inputs))
            with torch.set_grad_enabled(differentiable and not loop.first_order):
                gradients = loop.network.gradient(fast, support, own, loop.loss)
                factor = clip_factor(gradients, loop.clip_norm)
            for j, name in zip(moving, own, strict=True):
                step = gradients[name]
                if factors is not None:
                    step = step * factors[name]
                length = row[j] if factor is None else row[j] * factor
                fast[name] = _descend(fast[name], length, step)
    return fast


def clip_factor(gradients: Mapping[str, Tensor], clip_norm: float) -> Tensor | None:
    """min(1, clip/‖∇‖) [T], None where nothing is clipped; its gradient is 0 where ∇ is 0."""
    if math.isinf(clip_norm):
        return None
    parts = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients.values()]
    norm = torch.linalg.vector_norm(torch.stack(parts), dim=0)  # [T]
    return torch.reciprocal((norm / clip_norm).clamp_min(1))


def _descend(weights: Tensor, length: Tensor, direction: Tensor) -> Tensor:
    """weights − length · direction, ``length`` [T] one number for each task, or [] for all."""
    if length.dim() == 1:
        length = length.view(-1, *(1,) * (weights.dim() - 1))
    return torch.addcmul(weights, length, direction, value=-1)
