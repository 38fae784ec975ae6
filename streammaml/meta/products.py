"""Matrix products of a stack of matrices, with derivatives that come out in the layout of the next.

Rule: torch's own derivative of a product with a transposed matrix is transposed, and makes every
addition after it slow; and its stacked products are slow where a matrix has few columns, as a last
layer has. These are neither. The derivative of each is made of the other two.

    T  tasks    S  examples    M, N  the two widths
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NARROW = 16
"""Fewer columns than these are faster as rows."""


def affine(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    """a b + bias [T, S, N] of a [T, S, M], b [T, M, N] and a bias [T, N]."""
    if not torch.is_grad_enabled():
        return _affine(a, b, bias)
    outputs: Tensor = _Affine.apply(a, b, bias)  # type: ignore[no-untyped-call]  # torch has no types here
    return outputs


def inner(a: Tensor, b: Tensor) -> Tensor:
    """aᵀb [T, M, N] of a [T, S, M] and b [T, S, N]."""
    if not torch.is_grad_enabled():
        return _inner(a, b)
    product: Tensor = _Inner.apply(a, b)  # type: ignore[no-untyped-call]  # likewise
    return product


def outer(a: Tensor, b: Tensor) -> Tensor:
    """abᵀ [T, S, M] of a [T, S, N] and b [T, M, N]."""
    if not torch.is_grad_enabled():
        return torch.bmm(a, b.mT)
    product: Tensor = _Outer.apply(a, b)  # type: ignore[no-untyped-call]  # likewise
    return product


def _affine(a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
    if b.shape[-1] < NARROW:
        return torch.baddbmm(bias.unsqueeze(-1), b.mT.contiguous(), a.mT).mT
    return torch.baddbmm(bias.unsqueeze(-2), a, b)


def _times(a: Tensor, b: Tensor) -> Tensor:
    if b.shape[-1] < NARROW:
        return torch.bmm(b.mT.contiguous(), a.mT).mT
    return torch.bmm(a, b)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    if b.shape[-1] < NARROW:
        return torch.bmm(b.mT, a).mT.contiguous()
    return torch.bmm(a.mT, b)


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _affine(a, b, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        by_a, by_b, by_bias = ctx.needs_input_grad
        return (
            torch.bmm(slope, b.mT) if by_a else None,
            _inner(a, slope) if by_b else None,
            slope.sum(1) if by_bias else None,
        )


class _Inner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return _inner(a, b)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        by_a, by_b = ctx.needs_input_grad
        return torch.bmm(b, slope.mT) if by_a else None, _times(a, slope) if by_b else None


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.bmm(a, b.mT)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        by_a, by_b = ctx.needs_input_grad
        return _times(slope, b) if by_a else None, _inner(slope, a) if by_b else None
