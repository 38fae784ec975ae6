"""Products of stacked matrices, narrow or not, and their derivatives of both orders."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streammaml.meta.products import NARROW, affine, inner, outer


def made(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("width", [1, 2, NARROW, NARROW + 1])
@pytest.mark.parametrize("graph", [True, False])
def test_the_products_are_those_of_einsum(graph: bool, width: int) -> None:
    a, b, bias, c = made(3, 5, 4), made(3, 4, width), made(3, width), made(3, 5, width)

    with torch.set_grad_enabled(graph):
        products = affine(a, b, bias), inner(a, c), outer(c, b)

    expected = (
        torch.einsum("tsm,tmn->tsn", a, b) + bias[:, None],
        torch.einsum("tsm,tsn->tmn", a, c),
        torch.einsum("tsn,tmn->tsm", c, b),
    )
    for product, e in zip(products, expected, strict=True):
        torch.testing.assert_close(product, e, check_stride=False)
        assert product.requires_grad == graph


@pytest.mark.parametrize("width", [2, NARROW])
def test_the_derivatives_are_those_of_finite_differences(width: int) -> None:
    a, b, bias, c = made(2, 3, 4), made(2, 4, width), made(2, width), made(2, 3, width)

    assert torch.autograd.gradcheck(affine, (a, b, bias))
    assert torch.autograd.gradcheck(inner, (a, c))
    assert torch.autograd.gradcheck(outer, (c, b))
    assert torch.autograd.gradgradcheck(inner, (a, c))


def test_only_what_is_asked_for_is_derived() -> None:
    a, b = made(2, 3, 4), made(2, 3, 2)
    still = a.detach()

    inner(still, b).sum().backward()  # type: ignore[no-untyped-call]  # torch has no types here

    assert still.grad is None
    assert b.grad is not None
