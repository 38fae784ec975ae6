"""The inner loop: against float64, its clip and rates by hand, and what it does when it fails."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from streammaml.events import Float32s, Floats
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


# --- rules beyond a rate for each tensor -------------------------------------------------------


def by_hand(case: Case, clip: float, factors: Float32s) -> Floats:
    """The rule as it is written, on flat vectors."""
    lengths, rates = case.meta.lengths, case.meta.rates.astype(float)
    layers, fast = layers_of(case.initialization), flat(layers_of(case.initialization))
    for row in rates:
        rate = np.repeat(row, lengths)
        layers = cut(fast, layers)
        step = flat(reference.gradient(layers, case.u, case.y, case.seen)) * (rate != 0)
        length = float(np.linalg.norm(step))
        fast = fast - rate * factors * step * (min(1.0, clip / length) if length else 0.0)
    return fast


def cut(vector: Floats, like: reference.Layers) -> reference.Layers:
    parts, first = [], 0
    for tensor in (part for layer in like for part in layer):
        parts.append(vector[first : first + tensor.size].reshape(tensor.shape))
        first += tensor.size
    return list(zip(parts[::2], parts[1::2], strict=True))


def with_factors(case: Case, factors: Float32s) -> Case:
    tensors = {**case.initialization.tensors, "parameter_rates": factors}
    return replace(case, initialization=replace(case.initialization, tensors=tensors))


@pytest.mark.parametrize("clip", [0.3, 5.0])
@TASKS
def test_a_tensor_with_rate_0_stays_and_has_no_part_in_the_norm(classes: int, clip: float) -> None:
    case = make_case([6, 9], classes)
    case.initialization.tensors["rates"][1:, :4] = 0  # the first step moves all of them
    fast = case.initialization.theta()

    adapt(case, fast, clip=clip)

    expected = by_hand(case, clip, np.ones_like(fast))
    np.testing.assert_allclose(fast, expected, rtol=1e-4, atol=2e-6)
    rates = case.initialization.tensors["rates"]
    rates[0, :4] = 0
    fast = case.initialization.theta()
    first = adapt(case, fast, clip=clip)
    body = int(case.meta.lengths[:4].sum())
    assert fast[:body].tobytes() == case.initialization.theta()[:body].tobytes()
    assert abs(fast - case.initialization.theta())[body:].max() > 0.01
    head = flat(reference.gradient(layers_of(case.initialization), case.u, case.y, case.seen))
    np.testing.assert_allclose(first, np.linalg.norm(head[body:]), rtol=1e-5)


def test_the_lowest_layer_that_moves_is_found() -> None:
    rates = [[1, 1, 1, 1], [0, 0.1, 0, 0], [0, 0, -1, 0], [0, 0, 0, 2], [0, 0, 0, 0]]

    found = [inner_loop.lowest_layer(np.array(row, np.float32)) for row in rates]

    assert found == [0, 0, 1, 1, 1]


def test_a_gradient_that_is_not_finite_in_a_tensor_that_stays_is_no_matter() -> None:
    step = np.array([np.nan, 1, np.inf, 2], np.float32)

    inner_loop.hold(step, np.array([1, 1, 1, 1]), np.array([0, -1, 0, 1], np.float32))

    assert step.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("clip", [0.3, 5.0])
def test_factors_of_the_parameters_multiply_the_clipped_gradient(clip: float) -> None:
    case = make_case([6, 9], 5)
    factors = np.random.default_rng(5).normal(size=case.meta.theta.size).astype(np.float32)
    fast = case.initialization.theta()

    adapt(with_factors(case, factors), fast, clip=clip)

    expected = by_hand(case, clip, factors)
    np.testing.assert_allclose(fast, expected, rtol=1e-4, atol=2e-6)
    assert abs(expected - by_hand(case, clip, np.ones_like(fast))).max() > 0.01


def test_factors_of_1_change_no_bit() -> None:
    case = make_case([6, 9], 5)
    fast, same = case.initialization.theta(), case.initialization.theta()

    adapt(case, fast)
    adapt(with_factors(case, np.ones_like(fast)), same)

    assert fast.tobytes() == same.tobytes()
