"""The compiled Page-Hinkley against river's, bit for bit, and the signals that feed it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from river.drift import PageHinkley

from streammaml.events import Floats
from streammaml.learner.detectors import Parameters
from streammaml.learner.kernels import detector as kernel
from streammaml.learner.policy import policy_of
from tests.learner.build import make_config


def new_detector() -> Floats:
    detector = np.full(4, 123.0)
    kernel.reset(detector)
    return detector


def signals(seed: int) -> Floats:
    """Losses that shift up and down, some of them constant, some with heavy tails."""
    rng = np.random.default_rng(seed)
    pieces = []
    for _ in range(8):
        length = int(rng.integers(5, 200))
        level = rng.choice([0.0, 0.05, 0.7, 2.0, 3.9])
        noise = rng.choice([0.0, 0.1, 1.0])
        pieces.append(np.abs(level + noise * rng.standard_t(3, length)))
    return np.concatenate(pieces)


@pytest.mark.parametrize("parameters", [{}, {"min_instances": 1, "delta": 0.0, "threshold": 0.7}])
@pytest.mark.parametrize("alpha", [1 - 0.0001, 0.99, 1.0])
def test_every_alarm_and_every_sum_equals_rivers(
    parameters: dict[str, float], alpha: float
) -> None:
    given: Parameters = {"min_instances": 10, "delta": 0.1, "threshold": 5.0, **parameters}
    given["alpha"] = alpha
    policy = policy_of(make_config(detector={"parameters": given}))
    alarms = 0

    for seed in range(25):
        theirs = PageHinkley(**given, mode="up")  # type: ignore[arg-type]  # by name
        ours = new_detector()
        for signal in signals(seed):
            level = kernel.update(ours, signal, policy)
            theirs.update(float(signal))  # type: ignore[no-untyped-call]  # river's is not typed
            assert (level == kernel.DRIFT) == theirs.drift_detected
            assert ours.tolist() == [
                theirs._x_mean.n,
                theirs._x_mean.get(),
                theirs._sum_increase,
                theirs._min_increase,
            ]
            if level == kernel.DRIFT:
                alarms += 1
                kernel.reset(ours)

    assert alarms > 50


def test_a_warning_is_a_statistic_above_half_the_threshold() -> None:
    settings = {"min_instances": 2, "delta": 0.0, "threshold": 4.0, "alpha": 1.0}
    policy = policy_of(make_config(detector={"parameters": settings}))
    detector = new_detector()

    # means 0, 0, 1.5, 2.25: the statistic grows by 3, then by 2.25
    levels = [kernel.update(detector, signal, policy) for signal in (0.0, 0.0, 4.5, 4.5)]

    assert levels == [kernel.STABLE, kernel.STABLE, kernel.WARNING, kernel.DRIFT]
    assert detector.tolist() == [4, 2.25, 5.25, 0]


def test_nothing_is_said_before_the_least_number_of_instances() -> None:
    settings = {"min_instances": 3, "delta": 0.0, "threshold": 1.0}
    policy = policy_of(make_config(detector={"parameters": settings}))
    detector = new_detector()

    levels = [kernel.update(detector, signal, policy) for signal in (0.0, 10.0, 10.0)]

    assert levels == [kernel.STABLE, kernel.STABLE, kernel.DRIFT]


def test_the_defaults_of_the_two_tasks_are_those_of_the_specification() -> None:
    classes, values = policy_of(make_config()), policy_of(make_config(classes=0))

    assert (classes.min_instances, classes.delta, classes.threshold) == (10, 0.1, 5)
    assert (values.min_instances, values.delta, values.threshold) == (10, 0.5, 5)
    assert classes.alpha == values.alpha == PageHinkley().alpha


def test_a_class_is_charged_its_log_loss_floored_at_a_fiftieth() -> None:
    assert kernel.class_signal(0.5) == math.log(2)
    assert kernel.class_signal(1.0) == 0
    assert kernel.class_signal(0.0) == pytest.approx(-math.log(0.02))
    assert kernel.class_signal(0.01) == pytest.approx(-math.log(0.02))


def test_an_error_is_measured_against_the_contexts_own_before_it_joins_it() -> None:
    scale = np.array([0.5, 0.5])

    fed = [kernel.error_signal(scale, 1, error) for error in (-0.25, 100.0, 0.0)]

    after_one = 0.98 * 0.5 + 0.02 * 0.25
    after_two = 0.98 * after_one + 0.02 * 4 * after_one
    assert fed == [0.5, 4.0, 0.0]
    np.testing.assert_allclose(scale, [0.5, 0.98 * after_two], rtol=1e-15)


def test_a_long_quiet_never_divides_by_zero() -> None:
    scale = np.array([0.5])

    quiet = [kernel.error_signal(scale, 0, 0.0) for _ in range(50_000)]

    assert not any(quiet)
    assert scale[0] > 0
    assert kernel.error_signal(scale, 0, 1.0) == 4
