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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streammaml.meta.losses import Examples, Loss, Objective
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
    with torch.set_grad_enabled(differentiable):
        moves = rates.detach() != 0
        # A rate of exactly 0 in every step stands for a tensor that stays, and costs nothing.
        own = [n for n, any_step in zip(parameters, moves.any(0).tolist(), strict=True) if any_step]
        if not own:
            return dict(parameters)
        layout = _layout(loop.network, parameters, own)
        flat = _flatten(loop.network, parameters, own, len(support.inputs))
        lengths, stays = _lengths(parameters, rates, moves, layout, factors)
        objective = Objective(support, loop.loss)
        for k, length in enumerate(lengths.unbind()):
            with torch.set_grad_enabled(differentiable and not loop.first_order):
                fast = {**parameters, **_views(flat, layout)}
                found = loop.network.gradient(fast, support.inputs, objective, own)
                step = _rows(found[name] for name in own)  # [T, P]
                if stays is not None:
                    step = step * stays[k]
            flat = _descend(flat, length, step, loop.clip_norm)
        return {**parameters, **_views(flat, layout)}


def shrinkage(gradients: Tensor, clip_norm: float) -> tuple[Tensor, Tensor]:
    """‖∇‖ and min(1, clip/‖∇‖) of gradients [T, P], both [T, 1]."""
    norm = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    return norm, torch.reciprocal((norm / clip_norm).clamp_min(1))


Layout = dict[str, torch.Size]
"""Shapes of one task's moving tensors, in their order in a flat vector of P numbers."""


def _layout(network: Network, parameters: Mapping[str, Tensor], own: list[str]) -> Layout:
    return {n: parameters[n].shape[parameters[n].dim() - network.rank(n) :] for n in own}


def _flatten(
    network: Network, parameters: Mapping[str, Tensor], own: list[str], tasks: int
) -> Tensor:
    """The moving tensors of each task as one row [T, P]; one row for all is not copied."""
    if all(parameters[n].dim() == network.rank(n) for n in own):
        return torch.cat([parameters[n].flatten() for n in own]).expand(tasks, -1)
    stacked = stack(network, parameters, own, tasks)
    return _rows(stacked.values())


def _rows(stacked: Iterable[Tensor]) -> Tensor:
    """Each task's numbers of all tensors as one row; a tensor may be a single number."""
    return torch.cat([tensor.reshape(len(tensor), -1) for tensor in stacked], 1)


def _lengths(
    parameters: Mapping[str, Tensor],
    rates: Tensor,
    moves: Tensor,
    layout: Layout,
    factors: Mapping[str, Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """α·β [steps, P]; and 0 where a tensor stays in that step only, None where none does."""
    places = {name: j for j, name in enumerate(parameters)}
    columns = torch.tensor([places[name] for name in layout])
    sizes = torch.tensor([shape.numel() for shape in layout.values()])
    tensor_of = torch.repeat_interleave(columns, sizes)
    lengths = rates.index_select(1, tensor_of)
    if factors is not None:
        lengths = lengths * torch.cat([factors[name].flatten() for name in layout])
    whole = bool(moves[:, columns].all())
    return lengths, None if whole else moves.index_select(1, tensor_of).to(rates.dtype)


def _views(flat: Tensor, layout: Layout) -> Parameters:
    """Each task's tensors by name, as views of its row."""
    sizes = [shape.numel() for shape in layout.values()]
    if torch.is_grad_enabled() and flat.requires_grad:
        parts: Sequence[Tensor] = _Parts.apply(flat, sizes)  # type: ignore[no-untyped-call]
    else:
        parts = torch.split(flat.detach(), sizes, 1)
    return {
        name: part.view(len(part), *shape)
        for part, (name, shape) in zip(parts, layout.items(), strict=True)
    }


def _descend(flat: Tensor, length: Tensor, step: Tensor, clip_norm: float) -> Tensor:
    moved: Tensor = _Descent.apply(  # type: ignore[no-untyped-call]  # torch has no types here
        flat, length, step, clip_norm
    )
    return moved


class _Parts(torch.autograd.Function):
    """Split rows; torch's own derivative would fill a whole row with zeros for each part."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        return tuple(torch.split(flat, sizes, 1))

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        return torch.cat(slopes, 1), None


class _Descent(torch.autograd.Function):
    """φ − s · length · ∇ with s = min(1, clip/‖∇‖), whose own slope is 0 where ∇ is 0.

    As one node: as single operations it takes three times as long.
    """

    @staticmethod
    def forward(ctx: Any, flat: Tensor, length: Tensor, step: Tensor, clip_norm: float) -> Tensor:
        if math.isinf(clip_norm):
            norm, shrink, along = None, None, length
        else:
            norm, shrink = shrinkage(step, clip_norm)
            along = shrink * length
        ctx.save_for_backward(length, step, norm, shrink)
        return torch.addcmul(flat, along, step, value=-1)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        length, step, norm, shrink = ctx.saved_tensors
        product = slope * step
        if shrink is None:
            by_length = -product.sum(0)
            by_step = slope * -length if ctx.needs_input_grad[2] else None
            return slope, by_length, by_step, None
        by_length = -(shrink.mT @ product).squeeze(0)
        if not ctx.needs_input_grad[2]:
            return slope, by_length, None, None
        by_step = (shrink * -length).mul_(slope)
        if bool((shrink < 1).any()):
            # s = clip/‖∇‖ where that is below 1: ∂s/∂∇ = −s·∇/‖∇‖².
            along = (product @ length).unsqueeze(1)
            by_step.addcmul_(along * torch.where(shrink < 1, shrink / norm.square(), 0), step)
        return slope, by_length, by_step, None
