"""river's detectors by name: which are found, which are compiled, what a wrong name is told."""

from __future__ import annotations

import numpy as np
import pytest
from river import drift
from river.drift import binary

from streammaml.config import DetectorConfig
from streammaml.errors import ConfigError
from streammaml.events import DriftLevel, Task
from streammaml.learner import detectors

CLASSES, VALUES = Task.CLASSIFICATION, Task.REGRESSION


def test_the_detectors_of_the_loss_and_of_errors_are_found_by_rivers_names() -> None:
    assert {"ADWIN", "KSWIN", "PageHinkley", "NoDrift"} <= set(detectors.names())
    assert {"DDM", "EDDM", "FHDDM", "HDDMA", "HDDMW"} <= set(detectors.names())


@pytest.mark.parametrize("name", sorted(detectors.names()))
def test_every_detector_can_be_built_and_fed(name: str) -> None:
    parameters: detectors.Parameters = {"t_0": 10} if name == "DummyDriftDetector" else {}
    config = DetectorConfig(name=name, parameters=parameters)

    detector = detectors.build(config, CLASSES).clone()
    for wrong in (False, True, True):
        detector.update(wrong)

    assert detectors.level_of(detector) in set(DriftLevel)
    assert detectors.is_binary(config) == (name in binary.__all__)


def test_page_hinkley_takes_the_defaults_of_its_task_and_what_is_given_over_them() -> None:
    config = DetectorConfig(parameters={"threshold": 7})

    of_classes = detectors.build(config, CLASSES)
    of_values = detectors.build(config, VALUES)

    assert isinstance(of_classes, drift.PageHinkley)
    assert isinstance(of_values, drift.PageHinkley)
    assert (of_classes.delta, of_values.delta) == (0.1, 0.5)
    for built in (of_classes, of_values):
        assert (built.min_instances, built.threshold, built.mode) == (10, 7, "up")


def test_another_detector_has_rivers_own_defaults() -> None:
    assert detectors.parameters_of(DetectorConfig(name="ADWIN"), CLASSES) == {}


def test_a_detector_that_draws_numbers_has_a_seed_unless_another_is_given() -> None:
    given = DetectorConfig(name="KSWIN", parameters={"seed": 3})

    assert detectors.parameters_of(DetectorConfig(name="KSWIN"), CLASSES) == {"seed": 0}
    assert detectors.parameters_of(given, CLASSES) == {"seed": 3}


@pytest.mark.parametrize(
    ("config", "compiled"),
    [
        (DetectorConfig(), True),
        (DetectorConfig(parameters={"mode": "up"}), True),
        (DetectorConfig(parameters={"mode": "both"}), False),
        (DetectorConfig(name="ADWIN"), False),
    ],
)
def test_only_page_hinkley_upwards_is_compiled(config: DetectorConfig, compiled: bool) -> None:
    assert detectors.is_compiled(config, CLASSES) is compiled


def test_a_wrong_name_is_told_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"no drift detector 'ADWINN'; it has ADWIN, .*DDM"):
        detectors.build(DetectorConfig(name="ADWINN"), CLASSES)


def test_a_wrong_parameter_is_told_the_right_ones() -> None:
    config = DetectorConfig(name="ADWIN", parameters={"sigma": 1})

    with pytest.raises(ConfigError, match=r"'sigma'; ADWIN has: delta, clock"):
        detectors.build(config, CLASSES)


def test_a_detector_of_errors_is_refused_for_a_regression() -> None:
    with pytest.raises(ConfigError, match="DDM watches right and wrong"):
        detectors.build(DetectorConfig(name="DDM"), VALUES)


def test_drift_goes_before_warning() -> None:
    detector = binary.DDM()
    rng = np.random.default_rng(1)
    levels = set()
    for wrong in [*(rng.random(300) < 0.1), *(rng.random(300) < 0.4)]:
        detector.update(bool(wrong))  # type: ignore[no-untyped-call]  # river's is not typed
        levels.add(detectors.level_of(detector))

    assert levels == {DriftLevel.STABLE, DriftLevel.WARNING, DriftLevel.DRIFT}
