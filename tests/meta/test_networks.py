"""The stacked networks: each task's own, of any depth."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, vmap

from streammaml.events import Task
from streammaml.meta.networks import MLP, split, stack
from tests.meta.build import (
    CLASSES,
    REGRESSION,
    gradient_of,
    make_examples,
    make_parameters,
    make_spec,
    textbook_loss,
)


def test_a_network_of_known_weights_gives_the_values_computed_by_hand() -> None:
    parameters = {
        "0.weight": torch.tensor([[[1.0, -1.0]], [[2.0, 0.0]]]),
        "0.bias": torch.tensor([[0.0, 1.0], [0.0, -1.0]]),
        "1.weight": torch.tensor([[[3.0], [5.0]], [[1.0], [1.0]]]),
        "1.bias": torch.tensor([[0.5], [0.0]]),
    }

    outputs = MLP.apply(parameters, torch.tensor([[[2.0], [-2.0]], [[1.0], [0.0]]]))

    assert outputs.tolist() == [[[6.5], [15.5]], [[2.0], [0.0]]]


def test_a_single_layer_is_linear() -> None:
    parameters = {"0.weight": torch.tensor([[[2.0], [-1.0]]]), "0.bias": torch.tensor([[3.0]])}

    assert MLP.apply(parameters, torch.tensor([[[-4.0, 1.0]]])).tolist() == [[[-6.0]]]


def test_splitting_a_vector_undoes_joining_the_tensors() -> None:
    spec = make_spec()
    parameters = make_parameters(spec)

    again = split(torch.cat([p.flatten() for p in parameters.values()]), spec)

    assert list(again) == list(spec.shapes())
    assert all(torch.equal(again[name], parameters[name]) for name in parameters)


def test_stacked_parameters_stay_as_they_are() -> None:
    parameters = make_parameters(make_spec())
    stacked = stack(MLP, parameters, list(parameters), 4)

    again = stack(MLP, stacked, list(stacked), 4)

    assert all(again[name] is stacked[name] for name in stacked)


@pytest.mark.parametrize("task", [CLASSES, REGRESSION])
@pytest.mark.parametrize("sizes", [(4, 3), (4, 8, 3), (4, 8, 6, 3)])
def test_the_stacked_gradient_is_the_one_of_vmap_and_grad(
    task: Task, sizes: tuple[int, ...]
) -> None:
    spec = make_spec(task, sizes)
    examples = make_examples(spec, seed=3)
    stacked = {
        name: p + 0.1 * torch.randn(5, *p.shape, generator=torch.Generator().manual_seed(i))
        for i, (name, p) in enumerate(make_parameters(spec).items())
    }

    expected = vmap(grad(textbook_loss))(stacked, *examples[:3])

    actual = gradient_of(stacked, examples)
    assert list(actual) == list(stacked)
    for name in stacked:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-6, rtol=1e-5)
