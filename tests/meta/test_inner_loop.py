"""The stacked inner loop equals the textbook's, run for one task at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from streammaml.events import Task
from streammaml.meta.inner_loop import InnerLoop, adapt
from streammaml.meta.losses import Examples, loss
from streammaml.meta.networks import MLP, stack
from tests.meta.build import (
    CLASSES,
    REGRESSION,
    gradient_of,
    largest_norm,
    leaves,
    make_examples,
    make_parameters,
    make_rates,
    make_spec,
    part,
    textbook_adapt,
)

LOOSE, ACTIVE = 5.0, 0.3
"""Clips: one that never bites on these tasks, one that does."""


@pytest.mark.parametrize("clip", [LOOSE, ACTIVE])
@pytest.mark.parametrize("sizes", [(4, 3), (4, 8, 6, 3)])
@pytest.mark.parametrize("task", [CLASSES, REGRESSION])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_adapt_equals_the_textbook_run_one_task_at_a_time(
    dtype: torch.dtype, error: float, task: Task, sizes: tuple[int, ...], clip: float
) -> None:
    spec = make_spec(task, sizes)
    parameters, rates = make_parameters(spec, dtype=dtype), make_rates(spec, dtype=dtype)
    support = make_examples(spec, seed=2, dtype=dtype)
    assert (largest_norm(parameters, support) > clip) == (clip == ACTIVE)

    fast = adapt(parameters, rates, support, InnerLoop(clip_norm=clip))

    for t in range(5):
        expected = textbook_adapt(parameters, rates, part(support, t), clip)
        for name in parameters:
            torch.testing.assert_close(fast[name][t], expected[name], atol=error, rtol=error)


def test_differentiable_or_not_and_of_either_order_the_weights_are_the_same() -> None:
    spec = make_spec()
    parameters, rates = leaves(make_parameters(spec)), make_rates(spec)
    support = make_examples(spec, seed=2)

    plain = adapt(parameters, rates, support, InnerLoop(clip_norm=ACTIVE))

    for first_order in (True, False):
        loop = InnerLoop(clip_norm=ACTIVE, first_order=first_order)
        other = adapt(parameters, rates, support, loop, differentiable=True)
        assert all(torch.equal(plain[name], other[name]) for name in plain)
        assert all(other[name].requires_grad for name in other)


def test_adapting_on_from_stacked_weights_is_adapting_once_with_all_steps() -> None:
    spec = make_spec(steps=5)
    parameters, rates = make_parameters(spec), make_rates(spec)
    support = make_examples(spec, seed=2)

    half = adapt(parameters, rates[:2], support, InnerLoop(clip_norm=LOOSE))
    rest = adapt(half, rates[2:], support, InnerLoop(clip_norm=LOOSE))

    whole = adapt(parameters, rates, support, InnerLoop(clip_norm=LOOSE))
    assert all(torch.equal(rest[name], whole[name]) for name in whole)


def test_adapt_leaves_no_graph_and_no_change_behind() -> None:
    spec = make_spec()
    parameters, rates = leaves(make_parameters(spec)), make_rates(spec).requires_grad_()
    before = {name: p.detach().clone() for name, p in parameters.items()}

    fast = adapt(parameters, rates, make_examples(spec, seed=2), InnerLoop(clip_norm=LOOSE))

    assert not any(w.requires_grad or w.grad_fn for w in fast.values())
    assert all(torch.equal(parameters[name], before[name]) for name in before)
    assert torch.is_grad_enabled()


def test_adapt_is_differentiable_even_where_the_caller_holds_no_grad() -> None:
    spec = make_spec()

    with torch.no_grad():
        fast = adapt(
            leaves(make_parameters(spec)),
            make_rates(spec),
            make_examples(spec, seed=2),
            InnerLoop(clip_norm=LOOSE),
            differentiable=True,
        )

    assert all(w.requires_grad for w in fast.values())


@pytest.mark.parametrize("task", [CLASSES, REGRESSION])
def test_padding_has_no_effect_whatever_stands_there(task: Task) -> None:
    spec = make_spec(task)
    parameters, rates = make_parameters(spec), make_rates(spec)
    support = make_examples(spec, seed=2)
    padding = support.weights == 0
    assert padding.any()
    noisy = Examples(
        torch.where(padding[..., None], 1e12, support.inputs),
        torch.where(padding, 1_000_000, support.targets),
        support.weights,
    )

    fast, expected = (
        adapt(parameters, rates, s, InnerLoop(clip_norm=LOOSE)) for s in (noisy, support)
    )

    for name in fast:
        torch.testing.assert_close(fast[name], expected[name], atol=1e-7, rtol=1e-6)


def test_one_step_of_a_linear_classifier_has_the_values_computed_by_hand() -> None:
    parameters = {"0.weight": torch.zeros(1, 2), "0.bias": torch.zeros(2)}
    support = Examples(torch.tensor([[[2.0]]]), torch.tensor([[1]]), torch.ones(1, 1))

    fast = adapt(parameters, torch.tensor([[0.1, 0.2]]), support, InnerLoop(clip_norm=5.0))

    # p = (½, ½), so the slope is (½, −½); by the weights it is twice that.
    torch.testing.assert_close(fast["0.weight"], torch.tensor([[[-0.1, 0.1]]]))
    torch.testing.assert_close(fast["0.bias"], torch.tensor([[-0.1, 0.1]]))


def test_one_clipped_step_of_a_linear_regression_has_the_values_computed_by_hand() -> None:
    parameters = {"0.weight": torch.tensor([[1.0]]), "0.bias": torch.tensor([0.0])}
    support = Examples(
        torch.tensor([[[3.0], [0.5]]]), torch.tensor([[-1.0, 0.0]]), torch.tensor([[3.0, 1.0]])
    )

    fast = adapt(parameters, torch.tensor([[0.1, 0.2]]), support, InnerLoop(clip_norm=1.0))

    # Errors 4 and ½, slopes ¾·1 and ¼·½: ∇ = (¾·3 + ⅛·½, ¾ + ⅛).
    weight, bias = 2.3125, 0.875
    norm = math.hypot(weight, bias)
    torch.testing.assert_close(fast["0.weight"], torch.tensor([[[1 - 0.1 * weight / norm]]]))
    torch.testing.assert_close(fast["0.bias"], torch.tensor([[-0.2 * bias / norm]]))


def test_the_rates_of_first_order_learn_by_the_product_of_the_gradients() -> None:
    spec = make_spec()
    parameters, rates = make_parameters(spec), make_rates(spec).requires_grad_()
    support, query = make_examples(spec, seed=2), make_examples(spec, seed=3)
    clipped, fast = [], stack(MLP, parameters, list(parameters), 5)
    for k in range(spec.steps):
        clipped.append(_clipped(fast, support))
        fast = adapt(fast, rates[k : k + 1].detach(), support, InnerLoop(clip_norm=ACTIVE))
    outer = gradient_of(fast, query)
    expected = [[-(outer[name] * step[name]).sum() for name in outer] for step in clipped]

    adapted = adapt(parameters, rates, support, InnerLoop(clip_norm=ACTIVE), differentiable=True)
    total = loss(MLP.apply(adapted, query.inputs), query).sum()
    (actual,) = torch.autograd.grad(total, rates)

    torch.testing.assert_close(actual, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_clip_has_no_slope_rather_than_nan_where_the_gradient_is_zero() -> None:
    spec = make_spec(REGRESSION, (1, 1), steps=1)
    parameters = {"0.weight": torch.zeros(1, 1), "0.bias": torch.zeros(1)}
    support = Examples(torch.ones(2, 3, 1), torch.zeros(2, 3), torch.ones(2, 3))
    own = leaves(parameters)

    fast = adapt(
        own,
        make_rates(spec),
        support,
        InnerLoop(clip_norm=5.0, first_order=False),
        differentiable=True,
    )
    (slope,) = torch.autograd.grad(fast["0.bias"].sum(), own["0.bias"])

    assert slope.isfinite().all()
    assert not fast["0.weight"].any()


def test_a_task_that_diverges_leaves_the_others_alone() -> None:
    spec = make_spec(REGRESSION)
    parameters, rates = make_parameters(spec), make_rates(spec)
    support = make_examples(spec, seed=2)
    broken = support._replace(inputs=support.inputs.clone())
    broken.inputs[1] = math.inf

    fast, expected = (
        adapt(parameters, rates, s, InnerLoop(clip_norm=LOOSE)) for s in (broken, support)
    )

    assert not fast["0.weight"][1].isfinite().all()
    for name in fast:
        for t in (0, 2, 3, 4):
            torch.testing.assert_close(fast[name][t], expected[name][t])


def _clipped(fast: dict[str, Tensor], support: Examples) -> dict[str, Tensor]:
    gradients = gradient_of(fast, support)
    norm = torch.stack([(g**2).flatten(1).sum(1) for g in gradients.values()]).sum(0).sqrt()
    shrink = (ACTIVE / norm).clamp_max(1)  # [T]
    return {name: g * shrink.view(-1, *[1] * (g.dim() - 1)) for name, g in gradients.items()}
