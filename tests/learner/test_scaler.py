"""Scaled inputs against the plain reference, and at the edges: constant, missing, far from zero."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streammaml.events import Float32s
from streammaml.learner.kernels import scaler
from streammaml.learner.state import (
    ContextState,
    StreamState,
    new_contexts,
    new_stream,
)
from tests.learner import reference


class Pair:
    """The kernel's scalers of one context, and the reference's."""

    def __init__(self, width: int) -> None:
        self.contexts: ContextState = new_contexts(2, 1, 4, width, False)
        self.stream: StreamState = new_stream(width, 2, 2)
        self.mean, self.inverse = np.zeros(width), np.zeros(width)
        self.u = np.zeros(2 * width, np.float32)
        self.slow_stream = reference.StreamScaler(width)
        self.slow_rows = [reference.ContextScaler(width), reference.ContextScaler(width)]
        self.labels = 0

    def take(self, row: int, x: Float32s) -> None:
        scaler.learn_x(self.contexts, self.stream, row, x)
        self.slow_stream.take(x.astype(float))
        self.slow_rows[row].take(x.astype(float))

    def refresh(self) -> None:
        self.labels += 1
        scaler.refresh_x(self.stream, self.labels)
        self.slow_stream.refresh()

    def scale(self, row: int, x: Float32s) -> tuple[Float32s, reference.Floats]:
        scaler.context_scale(self.contexts, self.stream, row, self.mean, self.inverse)
        scaler.inputs(x, self.stream, self.mean, self.inverse, self.u)
        slow = reference.inputs(self.slow_stream, self.slow_rows[row], x.astype(float))
        return self.u.copy(), slow


def test_inputs_equal_the_reference_at_every_event_of_two_contexts() -> None:
    rng = np.random.default_rng(1)
    pair = Pair(3)
    x = (rng.normal(size=(150, 3)) * [1, 30, 0.01] + [0, 500, -1]).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = np.nan

    for i in range(150):
        u, slow = pair.scale(i % 2, x[i])
        np.testing.assert_allclose(u, slow, rtol=1e-5, atol=1e-5)
        pair.take(i % 2, x[i])
        if i % 3:
            pair.refresh()


def test_the_moments_of_three_events_are_those_computed_by_hand() -> None:
    pair = Pair(1)
    for row, value in [(0, 1.0), (0, 2.0), (1, 6.0)]:
        pair.take(row, np.array([value], np.float32))
        pair.refresh()

    u, _ = pair.scale(0, np.array([2], np.float32))

    # stream: mean 3, variance 14/3; context 0: (20·3 + 3)/22 and (20(14/3 + 9) + 5)/22 − mean²
    np.testing.assert_allclose(pair.mean, [63 / 22])
    np.testing.assert_allclose(pair.inverse, [1 / math.sqrt(4.451102)], rtol=1e-6)
    np.testing.assert_allclose(u, [-math.sqrt(3 / 14), (2 - 63 / 22) / math.sqrt(4.451102)])


def test_before_the_first_refresh_the_mean_is_0_and_the_variance_1() -> None:
    pair = Pair(1)
    pair.take(0, np.array([7], np.float32))

    u, _ = pair.scale(1, np.array([2.5], np.float32))

    assert u.tolist() == [2.5, 2.5]


def test_a_missing_number_is_0_and_is_not_counted() -> None:
    pair = Pair(2)
    pair.take(0, np.array([np.nan, 1], np.float32))
    pair.take(0, np.array([np.nan, 3], np.float32))
    pair.refresh()

    u, _ = pair.scale(0, np.array([np.nan, np.nan], np.float32))

    assert u.tolist() == [0, 0, 0, 0]
    assert pair.stream.x_count.tolist() == [0, 2]
    assert pair.contexts.x_count[0].tolist() == [0, 2]
    assert pair.stream.x_shift.tolist() == [0, 2]
    assert pair.stream.x_variance.tolist() == [1, 1]


def test_a_constant_number_is_0_whatever_comes() -> None:
    pair = Pair(1)
    for _ in range(5):
        pair.take(0, np.array([1e6], np.float32))
        pair.refresh()

    u, _ = pair.scale(0, np.array([5], np.float32))

    assert u.tolist() == [0, 0]
    assert pair.stream.x_variance.tolist() == [1]


def test_scaled_values_are_clipped_at_four() -> None:
    pair = Pair(1)

    high, _ = pair.scale(0, np.array([1e12], np.float32))
    low, _ = pair.scale(0, np.array([-1e12], np.float32))

    assert high.tolist() == [4, 4]
    assert low.tolist() == [-4, -4]


def test_a_context_that_never_varies_keeps_a_hundredth_of_the_streams_variance() -> None:
    pair = Pair(1)
    for i in range(2_000):
        pair.take(0, np.array([5], np.float32))
        pair.take(1, np.array([5 + (-1) ** i], np.float32))
    pair.refresh()

    pair.scale(0, np.array([5], np.float32))

    # 20 pseudo-events of variance ½ among 2,020 would leave .005, that is the floor exactly
    np.testing.assert_allclose(pair.inverse, [1 / math.sqrt(0.01 * 0.5 + 1e-9)], rtol=1e-6)


def test_numbers_far_from_zero_keep_their_variance() -> None:
    pair = Pair(1)
    x = (1e6 + np.random.default_rng(2).normal(size=500)).astype(np.float32)
    for value in x:
        pair.take(0, np.array([value]))
    pair.refresh()

    pair.scale(0, x[:1])

    variance = float(np.var(x.astype(float)))
    np.testing.assert_allclose(pair.stream.x_variance, [variance], rtol=1e-9)
    np.testing.assert_allclose(pair.inverse, [1 / math.sqrt(variance)], rtol=1e-6)


@pytest.mark.parametrize(
    ("labels", "moves"), [(200, True), (201, False), (209, False), (210, True)]
)
def test_x_is_refreshed_at_each_of_200_labels_then_at_every_tenth(labels: int, moves: bool) -> None:
    pair = Pair(1)
    pair.take(0, np.array([3], np.float32))

    scaler.refresh_x(pair.stream, labels)

    assert pair.stream.x_shift.tolist() == [3.0 if moves else 0.0]


def test_labels_are_scaled_as_the_reference_scales_them() -> None:
    stream = new_stream(1, 1, 0)
    slow = reference.LabelScaler()
    labels = np.random.default_rng(3).normal(100, 7, 1_050) + np.arange(1_050) / 50

    for n, y in enumerate(labels, start=1):
        scaler.learn_y(stream, float(y), n)
        slow.take(float(y))
        np.testing.assert_allclose(stream.y_scale, [slow.m, slow.s], rtol=1e-9)

    assert stream.y_range.tolist() == [labels.min(), labels.max()]


def test_up_to_five_labels_the_deviation_is_1_and_the_size_of_the_mean() -> None:
    stream = new_stream(1, 1, 0)
    served = []

    for n, y in enumerate([-10.0, -12.0, -14.0, -16.0, -18.0, -20.0], start=1):
        scaler.learn_y(stream, y, n)
        served.append(stream.y_scale.tolist())

    assert served[0] == [-10, 11]
    assert served[4] == [-14, 15]
    np.testing.assert_allclose(served[5], [-15, math.sqrt(35 / 3)])


def test_a_constant_label_has_the_least_deviation() -> None:
    stream = new_stream(1, 1, 0)

    for n in range(1, 8):
        scaler.learn_y(stream, 3.0, n)

    np.testing.assert_allclose(stream.y_scale, [3, 1e-3])
