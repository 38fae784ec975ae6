"""The inner loop: a few clipped gradient steps on each task's support set, differentiable or not.

    φ_j ← φ_j − α_kj · ∇_j · min(1, clip/‖∇‖)      inner step k, tensor j, norm over all tensors

Rule: tasks share no fast weights, so everything is stacked over [T]. A result that is not finite is
a value, never an exception.

References:
    Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning", 2017. Antoniou, Edwards, Storkey,
    "How to train your MAML" (rates for each layer and step), 2018.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from streammaml.meta import networks
from streammaml.meta.losses import Examples, slope
from streammaml.meta.networks import Parameters


def adapt(
    parameters: Mapping[str, Tensor],
    rates: Tensor,
    support: Examples,
    *,
    clip_norm: float,
    first_order: bool = True,
    differentiable: bool = False,
) -> Parameters:
    """Take one step for each row of ``rates`` [steps, 2L] on every task's support set.

    Args:
        parameters: one set for all tasks, or stacked, each tensor leading with [T].
        rates: of step k on tensor j, in the order of ``parameters``.
        support: examples of T tasks.
        clip_norm: the longest gradient a step may use, for each task over all its tensors.
        first_order: take the clipped gradients as constants. The rates still learn:
            ∂loss/∂α_kj = −⟨∂loss/∂φ_j, clipped ∇_kj⟩. No effect unless ``differentiable``.
        differentiable: keep the graph back to ``parameters`` and ``rates``.

    Returns:
        Fast weights, stacked.
    """
    with torch.set_grad_enabled(differentiable):
        fast = networks.stack(parameters, len(support.inputs))
        for row in rates.unbind():
            with torch.set_grad_enabled(differentiable and not first_order):
                gradients = gradient(fast, support)
                factor = clip_factor(gradients, clip_norm)
            fast = {
                name: _descend(weights, rate * factor, gradients[name])
                for (name, weights), rate in zip(fast.items(), row.unbind(), strict=True)
            }
    return fast


def gradient(parameters: Mapping[str, Tensor], examples: Examples) -> Parameters:
    """Gradient of each task's loss by its own stacked parameters."""
    outputs, entered = networks.forward(parameters, examples.inputs)
    return networks.backward(parameters, entered, slope(outputs, examples))


def clip_factor(gradients: Mapping[str, Tensor], clip_norm: float) -> Tensor:
    """min(1, clip/‖∇‖) [T]; its own gradient is 0, not NaN, where ∇ is 0."""
    parts = [torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients.values()]
    norm = torch.linalg.vector_norm(torch.stack(parts), dim=0)  # [T]
    return torch.reciprocal((norm / clip_norm).clamp_min(1))


def _descend(weights: Tensor, length: Tensor, direction: Tensor) -> Tensor:
    """weights − length · direction, ``length`` [T] one number for each task."""
    return torch.addcmul(weights, length.view(-1, *(1,) * (weights.dim() - 1)), direction, value=-1)
