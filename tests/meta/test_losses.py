"""The loss of a task, and its slope."""

from __future__ import annotations

import math

import pytest
import torch

from streammaml.events import Task
from streammaml.meta.losses import Examples, Loss, Objective, loss
from tests.meta.build import CLASSES, REGRESSION, make_examples, make_spec


def test_cross_entropy_has_the_value_computed_by_hand() -> None:
    outputs = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    examples = Examples(torch.zeros(1, 2, 1), torch.tensor([[0, 1]]), torch.tensor([[3.0, 1.0]]))

    expected = 0.75 * math.log(4 / 3) + 0.25 * math.log(2)

    assert loss(outputs, examples).tolist() == pytest.approx([expected])
    torch.testing.assert_close(
        Objective(examples).slope(outputs), torch.tensor([[[-0.1875, 0.1875], [0.125, -0.125]]])
    )


def test_huber_has_the_value_computed_by_hand() -> None:
    outputs = torch.tensor([[[0.5], [-3.0]]])
    examples = Examples(torch.zeros(1, 2, 1), torch.tensor([[0.0, 0.0]]), torch.ones(1, 2))

    assert loss(outputs, examples).tolist() == [(0.125 + 2.5) / 2]
    assert Objective(examples).slope(outputs).tolist() == [[[0.25], [-0.5]]]


@pytest.mark.parametrize("task", [CLASSES, REGRESSION])
def test_the_slope_is_the_gradient_of_the_loss(task: Task) -> None:
    spec = make_spec(task)
    examples = make_examples(spec, seed=1)
    generator = torch.Generator().manual_seed(5)
    outputs = torch.randn(5, 7, spec.sizes[-1], generator=generator).requires_grad_()

    (expected,) = torch.autograd.grad(loss(outputs, examples).sum(), outputs)

    torch.testing.assert_close(Objective(examples).slope(outputs.detach()), expected)


@pytest.mark.parametrize("task", [CLASSES, REGRESSION])
def test_padding_counts_for_nothing_whatever_stands_there(task: Task) -> None:
    examples = Examples(
        torch.zeros(1, 2, 1),
        torch.tensor([[1, 999_999]]) if task is CLASSES else torch.tensor([[1.0, 1e30]]),
        torch.tensor([[2.0, 0.0]]),
    )
    outputs = torch.tensor([[[0.0, 1.0], [-1e30, 1e30]]])[..., : 2 if task is CLASSES else 1]

    inputs, targets, weights, _ = examples
    alone = Examples(inputs[:, :1], targets[:, :1], weights[:, :1])

    assert torch.equal(loss(outputs, examples), loss(outputs[:, :1], alone))
    assert torch.equal(
        Objective(examples).slope(outputs)[:, :1], Objective(alone).slope(outputs[:, :1])
    )
    assert not Objective(examples).slope(outputs)[:, 1].any()


def test_a_task_without_examples_loses_nothing() -> None:
    examples = Examples(torch.zeros(1, 2, 1), torch.zeros(1, 2), torch.zeros(1, 2))

    assert loss(torch.ones(1, 2, 1), examples).tolist() == [0.0]
    assert not Objective(examples).slope(torch.ones(1, 2, 1)).any()


def test_a_class_slot_that_is_not_in_use_has_no_share_and_no_slope() -> None:
    examples = Examples(torch.zeros(1, 1, 1), torch.tensor([[1]]), torch.ones(1, 1), classes=2)
    outputs = torch.tensor([[[0.0, 0.0, 50.0, 50.0]]])

    assert loss(outputs, examples).tolist() == pytest.approx([math.log(2)])
    assert Objective(examples).slope(outputs).tolist() == [[[0.5, -0.5, 0.0, 0.0]]]


def test_squared_error_has_the_value_computed_by_hand() -> None:
    outputs = torch.tensor([[[0.5], [-3.0]]])
    examples = Examples(torch.zeros(1, 2, 1), torch.tensor([[0.0, 0.0]]), torch.ones(1, 2))
    objective = Objective(examples, Loss.MSE)

    assert objective.loss(outputs).tolist() == [(0.25 + 9) / 2]
    assert objective.slope(outputs).tolist() == [[[0.5], [-3.0]]]


def test_hinge_has_the_value_computed_by_hand() -> None:
    outputs = torch.tensor([[[0.5, -2.0, 9.0], [0.5, 0.25, 9.0]]])
    examples = Examples(
        torch.zeros(1, 2, 1), torch.tensor([[0, 1]]), torch.tensor([[3.0, 1.0]]), classes=2
    )
    objective = Objective(examples, Loss.HINGE)

    assert objective.loss(outputs).tolist() == [0.75 * 0.5 + 0.25 * (1.5 + 0.75)]
    assert objective.slope(outputs).tolist() == [[[-0.75, 0.0, 0.0], [0.25, -0.25, 0.0]]]


@pytest.mark.parametrize(("task", "kind"), [(CLASSES, Loss.MSE), (REGRESSION, Loss.HINGE)])
def test_a_loss_of_the_other_task_is_refused(task: Task, kind: Loss) -> None:
    examples = make_examples(make_spec(task), seed=1)

    with pytest.raises(ValueError, match=f"no loss {kind.value}"):
        Objective(examples, kind)
