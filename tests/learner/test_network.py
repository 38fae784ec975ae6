"""Forward, losses and gradient of the flat network: against float64, and finite differences."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from streammaml.events import Float32s, Floats
from streammaml.initialization import Initialization
from streammaml.learner.kernels import network
from streammaml.learner.state import Meta, Scratch, meta_of, new_scratch
from tests.learner import reference
from tests.learner.build import layers_of, make_config, make_initialization

ROWS = 13
SHAPES = pytest.mark.parametrize("hidden", [[], [5], [6, 9], [3, 4, 5], [20, 85]])
TASKS = pytest.mark.parametrize("classes", [0, 2, 5])


@dataclass
class Case:
    initialization: Initialization
    scratch: Scratch
    u: Floats
    y: Floats
    known: NDArray[np.bool_]
    regression: bool

    @property
    def meta(self) -> Meta:
        return meta_of(self.initialization)

    @property
    def seen(self) -> NDArray[np.bool_] | None:
        return None if self.regression else self.known


def make_case(hidden: list[int], classes: int, seed: int = 1) -> Case:
    """A drawn network with inputs in scratch; the last of more than two classes is not known."""
    config = make_config(
        width=3, classes=classes, network="mlp" if hidden else "linear", hidden=hidden or [1]
    )
    initialization = make_initialization(config, seed, scale=2.0)
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(ROWS, 6)).astype(np.float32)
    known = np.arange(max(classes, 1)) < (classes - 1 if classes > 2 else 2)
    y: Floats = rng.normal(size=ROWS) * 2
    if classes:
        y = rng.integers(0, known.sum(), ROWS).astype(float)
    scratch = new_scratch(meta_of(initialization), 32, 3)
    scratch.activations[0, :ROWS, :6] = u
    for used in (scratch.deltas, scratch.turned, scratch.pad, scratch.gradient):
        used[:] = np.nan  # what an earlier event left behind must not matter
    scratch.activations[1:] = np.nan
    return Case(initialization, scratch, u.astype(float), y, known, not classes)


def flat(layers: reference.Layers) -> Floats:
    return np.concatenate([part.ravel() for layer in layers for part in layer])


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 16), (13, 64), (31, 85), (5, 130)])
def test_affine_equals_the_matrix_product(shape: tuple[int, int], relu: bool) -> None:
    rng = np.random.default_rng(4)
    m, n = shape
    x, weight, bias = (rng.normal(size=s).astype(np.float32) for s in [(6, m), (m, n), (n,)])
    out = np.full((6, n + 2), 77, np.float32)
    pad = np.full((m + 6, 16), np.nan, np.float32)

    network.affine(x, weight, bias, out, 5, relu, pad)

    expected = x[:5].astype(float) @ weight + bias
    np.testing.assert_allclose(
        out[:5, :n], np.maximum(expected, 0) if relu else expected, rtol=1e-5, atol=1e-5
    )
    assert (out[5:] == 77).all()
    assert (out[:, n:] == 77).all()


@SHAPES
def test_forward_equals_the_reference(hidden: list[int]) -> None:
    case = make_case(hidden, 5)

    theta, scratch = case.initialization.theta(), case.scratch
    network.forward(theta, case.meta, scratch.activations, ROWS, scratch.pad)

    outputs = scratch.activations[-1, :ROWS, :5]
    expected = reference.forward(layers_of(case.initialization), case.u)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_softmax_equals_the_reference_and_gives_an_unknown_class_nothing() -> None:
    logits = np.array([1, -2, 0.5, 3], np.float32)
    known = np.array([True, True, False, True])
    out = np.full(4, 9, np.float32)

    finite = network.softmax(logits, known, out)

    assert finite
    assert out[2] == 0
    np.testing.assert_allclose(out, reference.softmax(logits[None].astype(float), known)[0], 1e-6)


def test_softmax_stands_logits_of_any_size() -> None:
    out = np.zeros(3, np.float32)
    known = np.ones(3, bool)

    finite = network.softmax(np.array([3e38, -3e38, 3e38], np.float32), known, out)

    assert finite
    assert out.tolist() == [0.5, 0, 0.5]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_softmax_reports_a_logit_that_is_not_finite_unless_its_class_is_unknown(bad: float) -> None:
    logits, out = np.array([0, bad], np.float32), np.zeros(2, np.float32)

    assert not network.softmax(logits, np.array([True, True]), out)

    assert network.softmax(logits, np.array([True, False]), out)
    assert out.tolist() == [1, 0]


def test_softmax_of_no_known_class_is_all_zero() -> None:
    out = np.ones(2, np.float32)

    finite = network.softmax(np.zeros(2, np.float32), np.zeros(2, bool), out)

    assert finite
    assert out.tolist() == [0, 0]


@SHAPES
@TASKS
def test_loss_and_gradient_equal_the_reference(hidden: list[int], classes: int) -> None:
    case = make_case(hidden, classes)
    theta, out = case.initialization.theta(), case.scratch.gradient

    loss = network.gradient(
        theta, case.meta, case.y, case.known, case.regression, ROWS, case.scratch, out
    )

    layers = layers_of(case.initialization)
    expected = reference.inner_loss(layers, case.u, case.y, case.seen)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    slow = flat(reference.gradient(layers, case.u, case.y, case.seen))
    np.testing.assert_allclose(out, slow, rtol=1e-4, atol=1e-6)
    assert abs(slow).max() > 0.01


@pytest.mark.parametrize("hidden", [[], [6, 9]])
@TASKS
def test_gradient_equals_finite_differences(hidden: list[int], classes: int) -> None:
    case = make_case(hidden, classes, seed=2)
    theta, out = case.initialization.theta(), case.scratch.gradient
    layers = layers_of(case.initialization)

    network.gradient(theta, case.meta, case.y, case.known, case.regression, ROWS, case.scratch, out)

    for place in np.random.default_rng(6).choice(len(theta), 25):
        step = np.zeros(len(theta))
        step[place] = 1e-6
        up, down = (moved(layers, sign * step) for sign in (1, -1))
        slope = reference.inner_loss(up, case.u, case.y, case.seen)
        slope -= reference.inner_loss(down, case.u, case.y, case.seen)
        np.testing.assert_allclose(out[place], slope / 2e-6, rtol=1e-3, atol=1e-5)


def moved(layers: reference.Layers, by: Floats) -> reference.Layers:
    result, offset = [], 0
    for weight, bias in layers:
        w = by[offset : offset + weight.size].reshape(weight.shape)
        offset += weight.size
        result.append((weight + w, bias + by[offset : offset + bias.size]))
        offset += bias.size
    return result


def test_losses_are_those_computed_by_hand() -> None:
    outputs: Float32s = np.array([[1, 0], [0, 1]], np.float32)
    delta = np.zeros((2, 2), np.float32)

    loss = network.output_losses(outputs, np.zeros(2), np.ones(2, bool), False, 2, delta)

    low = 1 / (1 + math.e)
    np.testing.assert_allclose(loss, (-math.log(1 - low) - math.log(low)) / 2, rtol=1e-6)
    expected = [[-low / 2, low / 2], [(low - 1) / 2, (1 - low) / 2]]
    np.testing.assert_allclose(delta, expected, rtol=1e-6)


def test_huber_is_square_within_one_and_linear_beyond() -> None:
    outputs: Float32s = np.array([[0.5], [-3.0]], np.float32)
    delta = np.zeros((2, 1), np.float32)

    loss = network.output_losses(outputs, np.zeros(2), np.ones(1, bool), True, 2, delta)

    assert loss == (0.125 + 2.5) / 2
    assert delta.ravel().tolist() == [0.25, -0.5]


@pytest.mark.parametrize("regression", [True, False])
def test_a_loss_that_is_not_finite_is_nan(regression: bool) -> None:
    outputs: Float32s = np.array([[np.nan]], np.float32)
    delta = np.zeros((1, 1), np.float32)

    loss = network.output_losses(outputs, np.zeros(1), np.ones(1, bool), regression, 1, delta)

    assert math.isnan(loss)
