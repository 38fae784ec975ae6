"""The inner loop: against float64, its clip and rates by hand, and what it does when it fails."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streammaml.events import Float32s
from streammaml.learner.kernels import adapt as inner_loop
from tests.learner import reference
from tests.learner.build import layers_of
from tests.learner.test_network import ROWS, SHAPES, TASKS, Case, flat, make_case


def adapt(case: Case, fast: Float32s, factor: float = 1.0, clip: float = 5.0) -> float:
    return inner_loop.adapt(
        fast, case.meta, factor, clip, case.y, case.known, case.regression, ROWS, case.scratch
    )


@SHAPES
@TASKS
@pytest.mark.parametrize("clip", [0.3, 5.0])
def test_five_steps_equal_the_reference(hidden: list[int], classes: int, clip: float) -> None:
    case = make_case(hidden, classes)
    fast = case.initialization.theta()
    layers, rates = layers_of(case.initialization), case.initialization.tensors["rates"]

    first = adapt(case, fast, clip=clip)

    expected, norm = reference.adapt(layers, rates.astype(float), case.u, case.y, case.seen, clip)
    np.testing.assert_allclose(fast, flat(expected), rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(first, norm, rtol=1e-5)
    assert norm > 0.3
    assert abs(fast - case.initialization.theta()).max() > 0.01


def test_the_factor_multiplies_every_rate() -> None:
    case = make_case([6], 2)
    fast = case.initialization.theta()
    layers, rates = layers_of(case.initialization), case.initialization.tensors["rates"]

    adapt(case, fast, factor=0.5)

    expected, _ = reference.adapt(layers, rates.astype(float) / 2, case.u, case.y, case.seen)
    np.testing.assert_allclose(fast, flat(expected), rtol=1e-4, atol=2e-6)


def test_only_the_given_rows_count() -> None:
    case = make_case([6], 2)
    fast, again = case.initialization.theta(), case.initialization.theta()
    adapt(case, fast)

    case.scratch.activations[0, ROWS:] = 1e6
    adapt(case, again)

    assert fast.tobytes() == again.tobytes()


def test_each_tensor_descends_at_its_own_rate() -> None:
    lengths = np.array([2, 1, 1, 1], np.int64)
    parameters = np.zeros(5, np.float32)
    step = np.ones(5, np.float32)
    rates = np.array([1, 2, 4, 8], np.float32)

    inner_loop.descend(parameters, step, 0.5, lengths, rates, np.zeros(0, np.float32))

    assert parameters.tolist() == [-0.5, -0.5, -1, -2, -4]


def test_a_gradient_of_zero_changes_nothing() -> None:
    case = make_case([], 0)
    fast = np.zeros_like(case.initialization.theta())
    case.y[:] = 0

    first = adapt(case, fast)

    assert first == 0
    assert not fast.any()


@pytest.mark.parametrize("classes", [0, 2])
def test_weights_that_are_not_finite_give_nan(classes: int) -> None:
    case = make_case([6], classes)
    fast = case.initialization.theta()
    fast[0] = np.nan

    assert math.isnan(adapt(case, fast))


def test_a_last_step_that_overflows_gives_nan() -> None:
    case = make_case([], 2)
    case.initialization.tensors["rates"][:-1] = 0
    case.initialization.tensors["rates"][-1] = 3e38
    fast = case.initialization.theta()

    assert math.isnan(adapt(case, fast, factor=1e3))
